#!/usr/bin/env bash
# Makes the long texts of the SmolLM2 experiment, 19 plain-text documents, from Debian packages.
#
#   bash launch/long_texts.sh [FOLDER]      (default: texts in the clone)
#
# Needs Debian or Ubuntu with package lists (apt-get update); nothing is installed. Anywhere else,
# any folder of long .txt files serves as config.data.source.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/texts}
[[ $folder == /* ]] || folder=$PWD/$folder

for tool in apt-get dpkg-deb python3; do
  if ! command -v "$tool" >/dev/null; then
    printf '%s is missing: this needs Debian or Ubuntu; or give your own folder of texts\n' \
      "$tool" >&2
    exit 2
  fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download --quiet anarchism debian-handbook debian-reference-en developers-reference \
  r-cran-janeaustenr >&2
for package in ./*.deb; do
  dpkg-deb -x "$package" unpacked
done
python3 "$root/launch/long_texts.py" unpacked "$folder"
