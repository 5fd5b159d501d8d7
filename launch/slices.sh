# Sourced, after cluster.sh, by the scripts that name TPU slices: refuses those that there are not,
# before anything is requested. A pod that selects one of these would wait for ever.
# Shapes and sizes: https://cloud.google.com/tpu/docs/supported-tpu-configurations and
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
# shellcheck shell=bash

readonly FLAT="1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
readonly TORUS="2x2x1, 2x2x2, 2x2x4, 2x4x4, and AxBxC of multiples of 4 in ascending order"

# check_topology: --topology is one of --gke-accelerator, on machines of --chips-per-host.
check_topology() {
  local axes allowed given=${RROPE_TOPOLOGY//[^x]/} chips=$RROPE_CHIPS_PER_HOST machines
  case $RROPE_GKE_ACCELERATOR in
    tpu-v4-podslice | tpu-v5p-slice | tpu7x) axes=3 allowed=$TORUS ;;
    tpu-v5-lite-podslice | tpu-v6e-slice) axes=2 allowed=$FLAT ;;
    tpu-v5-lite-device) axes=2 allowed="1x1, 2x2, 2x4" ;;
    *) refuse "--gke-accelerator=$RROPE_GKE_ACCELERATOR must be the label of a TPU node pool:\
 tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5-lite-device, tpu-v5p-slice, tpu-v6e-slice or tpu7x" ;;
  esac
  if ((${#given} + 1 != axes)); then
    refuse "--topology=$RROPE_TOPOLOGY has $((${#given} + 1)) axes, $RROPE_GKE_ACCELERATOR has\
 $axes: $allowed"
  elif ((axes == 3)); then
    is_torus "$RROPE_TOPOLOGY" || refuse "--topology=$RROPE_TOPOLOGY is none of\
 $RROPE_GKE_ACCELERATOR, which has $allowed"
    machines=4
  else
    [[ ", $allowed," == *", $RROPE_TOPOLOGY,"* ]] || refuse "--topology=$RROPE_TOPOLOGY is none of\
 $RROPE_GKE_ACCELERATOR, which has $allowed"
    case $RROPE_TOPOLOGY in
      1x1) machines=1 ;;
      2x4) machines="8 or 4" ;;
      *) machines=4 ;;
    esac
    [[ $RROPE_GKE_ACCELERATOR$RROPE_TOPOLOGY != *device2x4 ]] || machines=8
  fi
  [[ " $machines " == *" $chips "* ]] || refuse "--chips-per-host=$chips: $RROPE_GKE_ACCELERATOR of\
 --topology=$RROPE_TOPOLOGY has machines of $machines"
}

# is_torus TOPOLOGY: whether there are such slices of a chip with three axes.
is_torus() {
  local a b c
  IFS=x read -r a b c <<<"$1"
  case $1 in
    2x2x1 | 2x2x2 | 2x2x4 | 2x4x4) return 0 ;;
  esac
  ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c))
}

# check_tpu_type: a --tpu-type of a chip that is known here is of a size that there is.
check_tpu_type() {
  local size=${RROPE_TPU_TYPE##*-} sizes
  case $RROPE_TPU_TYPE in
    v5litepod-* | v6e-*)
      sizes="1, 4, 8, 16, 32, 64, 128, 256"
      [[ ", $sizes," == *", $size,"* ]] || refuse "--tpu-type=$RROPE_TPU_TYPE: the number is that\
 of the chips, one of $sizes"
      ;;
    v4-* | v5p-*)
      if [[ ! $size =~ ^[1-9][0-9]{0,4}$ ]] ||
        { [[ ! $size =~ ^(8|16|32|64)$ ]] && ((size % 128)); }; then
        refuse "--tpu-type=$RROPE_TPU_TYPE: the number is that of the TensorCores, two a chip: 8,\
 16, 32, 64 or a multiple of 128"
      fi
      ;;
  esac
}
