#!/usr/bin/env bash
# Unpacks Keycloak into .keycloak, for `make keycloak`: from Maven Central, checked against the hash below.
set -eu
cd "$(dirname "$0")/.."
version=26.0.7
sha256=25353b74613bcf72db67f8addbd88d832c705a69333091a16573d249d665fe21
say() { printf 'keycloak: %s\n' "$*" >&2; }
die() { printf 'keycloak: %s\n' "$*" >&2; exit 1; }

[ "$(cat .keycloak/sha256 2>/dev/null || true)" != "$sha256" ] || exit 0
rm -rf .keycloak
mkdir -p .keycloak/fetched
say "fetching Keycloak $version (150 MB)"
mvn -q -B -Dstyle.color=never --strict-checksums dependency:copy -DoutputDirectory="$PWD/.keycloak/fetched" \
    -Dartifact="org.keycloak:keycloak-quarkus-dist:$version:zip" >&2 || die "Maven could not fetch it: check the network or Maven's settings"
archive=.keycloak/fetched/keycloak-quarkus-dist-$version.zip
printf '%s  %s\n' "$sha256" "$archive" | sha256sum -c --quiet >&2 || die "what was fetched is not what was locked"
.venv/bin/python -m zipfile -e "$archive" .keycloak
mv ".keycloak/keycloak-$version" .keycloak/server
chmod 755 .keycloak/server/bin/kc.sh
rm -rf .keycloak/fetched
echo "$sha256" >.keycloak/sha256
