# Sourced by the scripts that start jobs elsewhere: reads their settings, quotes their commands.
# Sets `root`, the folder of the clone. Works with the bash 3.2 of macOS.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly SETTINGS="PROJECT ZONE TPU_TYPE CAPACITY RUNTIME_VERSION QUEUE_FOR NETWORK SUBNETWORK\
 SHARED IMAGE NUM_SLICES GKE_CLUSTER XPK_STORAGE GKE_ACCELERATOR TOPOLOGY CHIPS_PER_HOST\
 SLURM_PARTITION SLURM_ACCOUNT SLURM_NODES SLURM_GPUS_PER_NODE SLURM_TIME NAME RETRIES"

say() {
  printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
}

# refuse MESSAGE: bad usage, as in `rrope`: one line and exit code 2.
refuse() {
  say "$@"
  exit 2
}

is_setting() {
  [[ " $SETTINGS " == *" $1 "* ]]
}

# flag_of SETTING: TPU_TYPE -> --tpu-type
flag_of() {
  printf -- '--%s' "$(tr '[:upper:]_' '[:lower:]-' <<<"$1")"
}

# read_flags WORDS...: the settings given as flags are set, --dry-run and --keep (where the script
# has set `keep`) too; `command` gets the words from the first that is no flag, or after a --. A
# setting that is none of the script's own, in `reads`, is refused.
read_flags() {
  local name unread=""
  dry_run=""
  while (($#)); do
    case $1 in
      --) shift && break ;;
      --dry-run) dry_run=1 ;;
      --keep)
        [[ -n ${keep+set} ]] || refuse "there is no flag --keep here"
        keep=1
        ;;
      --*=*)
        name=${1%%=*}
        name=$(tr '[:lower:]-' '[:upper:]_' <<<"${name#--}")
        is_setting "$name" || refuse "there is no flag ${1%%=*}; those of the settings in\
 launch/cluster.env.example are, and --dry-run; the command comes after a --"
        # shellcheck disable=SC2154 # the script sets it
        [[ " $reads NAME RETRIES " == *" $name "* ]] || unread=${1%%=*}
        printf -v "RROPE_$name" %s "${1#*=}"
        ;;
      -*) refuse "$1 is no flag; flags are --SETTING=VALUE and --dry-run, the command comes last" ;;
      *) break ;;
    esac
    shift
  done
  command=("$@")
  if ((${#command[@]} == 0)); then
    refuse "no command; give one, such as: rrope train --config=configs/X.py --workdir=runs/x"
  fi
  [[ -z $unread ]] || refuse "$unread has no meaning here; it is a setting of other scripts"
  check_command
}

# check_command: no folder of an rrope command is a URL that it would refuse where the machines are
# there and billed. Sets `bucket` where its workdir is in an object store, so that nothing is left on
# the machines.
# shellcheck disable=SC2034 # the scripts read it
check_command() {
  local word flag="" rrope="" url='[A-Za-z][A-Za-z0-9+.-]*://'
  local folder='--?(workdir|checkpoint|from|to|config(\.[^=]*)?)'
  local stored='--?(workdir|checkpoint|from|config\.data\.(source|tokenizer)|config\.checkpoint\.init_from)'
  bucket=""
  for word in "${command[@]}"; do
    if [[ -n $rrope && $flag$word =~ ^--?workdir=(gs|s3):// ]]; then
      bucket=1
    elif [[ -n $rrope && $flag$word =~ ^$folder=$url && ! $flag$word =~ ^$stored=(gs|s3):// ]]; then
      refuse "$flag$word is a URL that rrope does not read there; give a folder below runs/, which is\
 what all machines share, or gs:// or s3:// where rrope takes them (docs/launch.md)"
    fi
    flag=""
    [[ ! $word =~ ^$folder$ ]] || flag=$word=
    [[ ! $word =~ ^(.*/)?rrope(_jax)?$ ]] || rrope=1
  done
}

# read_file: sets what flags and environment have left open to what launch/cluster.env says.
read_file() {
  local file=${RROPE_CLUSTER_ENV:-$root/launch/cluster.env} line name number=0
  if [[ ! -e $file ]]; then
    [[ -z ${RROPE_CLUSTER_ENV:-} ]] || refuse "RROPE_CLUSTER_ENV=$file does not exist"
    return 0
  fi
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ -n $line && $line != '#'* ]] || continue
    name=${line%%=*}
    if [[ $line != RROPE_*=* ]] || ! is_setting "${name#RROPE_}"; then
      refuse "$file line $number: '$line' is not SETTING=VALUE with a setting of\
 launch/cluster.env.example"
    fi
    [[ -n ${!name:-} ]] || printf -v "$name" %s "${line#*=}"
  done <"$file"
}

# require SETTINGS...: names all that are missing in one line.
require() {
  local setting name missing="" flags=""
  for setting in "$@"; do
    name=RROPE_$setting
    if [[ -z ${!name:-} ]]; then
      missing+=", $name"
      flags+=" $(flag_of "$setting")=..."
    fi
  done
  [[ -z $missing ]] || refuse "not set: ${missing#, }; set them in launch/cluster.env (see\
 launch/cluster.env.example) or give$flags"
}

# require_tool TOOL MEND
require_tool() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || refuse "$1 is missing; $2"
}

# check SETTING PATTERN WHAT: refuses a value that does not match the whole pattern.
check() {
  local name=RROPE_$1
  [[ ${!name} =~ ^($2)$ ]] || refuse "$(flag_of "$1")=${!name} must be $3"
}

# check_shared: --shared, where it is set, is an NFS share and not the URL of something else.
check_shared() {
  local what="SERVER:/PATH of an NFS share, such as 10.0.0.2:/vol; object stores cannot be mounted\
 as one"
  check SHARED '([A-Za-z0-9][A-Za-z0-9._-]*:/([^/[:cntrl:]][^[:cntrl:]]*)?)?' "$what"
  [[ ! $RROPE_SHARED =~ ^(gs|s3a?|az|abfss?|wasbs?|hf|https?|ftp|file|nfs): ]] ||
    refuse "--shared=$RROPE_SHARED must be $what"
}

# check_image: --image is a name that docker pulls, without a scheme.
check_image() {
  [[ $RROPE_IMAGE != *://* ]] || refuse "--image=$RROPE_IMAGE is a URL; give the name that docker\
 push took, such as us-docker.pkg.dev/my-project/r/rrope:1"
}

# name_job: gives the job a name of its own where it has none, such as rrope-ada-1122-091502.
name_job() {
  local user
  user=$(tr '[:upper:]' '[:lower:]' <<<"${USER:-me}" | tr -cd 'a-z0-9')
  : "${RROPE_NAME:=rrope-${user:0:12}-$(date +%m%d-%H%M%S)}"
  check NAME '[a-z]([a-z0-9-]{0,37}[a-z0-9])?' "lower-case letters, digits and dashes, a letter\
 first and at most 39 in all"
}

# quote WORDS...: sets `quoted` to one line that any bash reads as exactly these words. It survives
# Kubernetes as well, which replaces $(NAME) and $$ in commands: no $ is followed by ( or $ in it.
quote() {
  local word
  quoted=""
  for word in "$@"; do
    printf -v word %q "$word"
    if [[ $word == "\$'"* ]]; then # how bash writes line ends; a $ inside stands as it is
      word=${word#"\$'"}
      word="\$'${word//\$/\\044}"
    fi
    quoted+=${quoted:+ }$word
  done
}

# run WORDS...: runs them, or with --dry-run prints them.
run() {
  if [[ -n $dry_run ]]; then
    quote "$@"
    printf '%s\n' "$quoted"
  else
    "$@"
  fi
}
