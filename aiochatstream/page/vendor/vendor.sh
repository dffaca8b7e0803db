#!/usr/bin/env bash
# Downloads the released versions of the page's libraries, and checks them against SHA256SUMS.
# To update a library, change its version here, run with --update, and review the diff.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() { # PACKAGE@VERSION, then pairs: file in the package, file name in this folder
    local folder=$work/${1//\//-}
    mkdir -p "$folder"
    tar -xzf "$work/$(cd "$work" && npm pack --silent "$1")" -C "$folder"
    shift
    while [ $# -gt 0 ]; do
        mkdir -p "$(dirname "$2")"
        cp "$folder/package/$1" "$2"
        chmod 644 "$2"
        shift 2
    done
}

languages=(bash cpp css diff go java javascript json markdown python rust sql typescript xml yaml)

fetch marked@18.2.1 lib/marked.esm.js marked.js lib/marked.d.ts marked.d.ts LICENSE LICENSE-marked
fetch dompurify@3.5.0 dist/purify.es.mjs purify.js LICENSE LICENSE-dompurify
fetch @highlightjs/cdn-assets@11.12.0 LICENSE LICENSE-highlight.js es/core.min.js highlight/core.js \
    $(for language in "${languages[@]}"; do echo "es/languages/$language.min.js highlight/$language.js"; done)

if [ "${1:-}" = --update ]; then
    find . -type f \( -name '*.js' -o -name 'marked.d.ts' -o -name 'LICENSE-*' \) | LC_ALL=C sort | xargs sha256sum >SHA256SUMS
fi
sha256sum --check --quiet SHA256SUMS && echo "The libraries in $here match SHA256SUMS."
