#!/usr/bin/env bash
# Builds Debian packages: deploy/debian/build.sh relay|gateway OUTDIR [ROOT]
#
# Each holds this project, and what requirements.lock says that it needs, under /usr/lib/sealane; the distribution's own
# Python runs it in isolated mode. With the same SOURCE_DATE_EPOCH (default: the last commit) the bytes are the same.
set -eu
cd "$(dirname "$0")/../.."
kind=$1
mkdir -p "$2"
out=$(realpath "$2")
python=.venv/bin/python
case $kind in
relay) extras="" ;;
gateway) extras=gateway ;;
*) echo "build: unknown package '$kind': use relay or gateway" >&2; exit 1 ;;
esac
version=$($python -c 'from importlib.metadata import version; print(version("sealane"))')
arch=$(dpkg --print-architecture)
abi=$($python -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
next=${abi%.*}.$((${abi#*.} + 1))
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
umask 022

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/root
lib=$root/usr/lib/sealane
mkdir -p "$lib" "$root/usr/bin" "$root/lib/systemd/system" "$root/etc/sealane" "$root/usr/share/doc/sealane-$kind" \
    "$root/usr/share/bash-completion/completions" "$root/DEBIAN"

echo "build: sealane-$kind $version: its Python packages, then the package (a minute or two)" >&2
# shellcheck disable=SC2086  # a list of extras, split on purpose
$python deploy/debian/requirements.py requirements.lock $extras >"$stage/requirements.txt"
pip() { $python -m pip install --quiet --disable-pip-version-check --no-compile --target "$lib" "$@"; }
pip --require-hashes --no-deps --only-binary :all: -r "$stage/requirements.txt" ||
    { echo "build: pip could not install the locked packages: check the network or pip's configuration" >&2; exit 1; }
$python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$stage" .
rm -rf "$lib/bin" # else pip warns of it
pip --no-deps "$stage"/sealane-*.whl
rm -rf "$lib/bin"

cat >"$root/usr/bin/sealane" <<'PYTHON'
#!/usr/bin/python3 -I
# Isolated: neither the caller's environment nor a user's site-packages decide what code a relay runs.
import sys

sys.path.insert(0, "/usr/lib/sealane")
sys.dont_write_bytecode = True
from gateway.cli.main import run

sys.argv[0] = "sealane"
run()
PYTHON
chmod 755 "$root/usr/bin/sealane"

cp deploy/systemd/sealane.slice "deploy/systemd/sealane-$kind.service" "$root/lib/systemd/system/"
[ "$kind" != relay ] || cp deploy/systemd/sealane-relay.socket "$root/lib/systemd/system/"
# All pages: they lead to one another, and errors name them.
doc=$root/usr/share/doc/sealane-$kind
cp README.md SECURITY.md LICENSE CHANGELOG.md "$doc/"
mkdir -p "$doc/docs/adr"
cp docs/*.md docs/*.json "$doc/docs/"
cp docs/adr/*.md "$doc/docs/adr/"
_SEALANE_COMPLETE=source_bash .venv/bin/sealane >"$root/usr/share/bash-completion/completions/sealane" 2>/dev/null ||
    rm -f "$root/usr/share/bash-completion/completions/sealane"
depends="python3 (>= $abi), python3 (<< $next)"
if [ "$kind" = relay ]; then
    mkdir -p "$root/usr/lib/sysctl.d" "$root/etc/apparmor.d/abstractions/libvirt-qemu.d" \
        "$root/usr/share/sealane/selinux" "$root/usr/share/sealane/libvirt" "$root/usr/share/sealane/apparmor"
    cp deploy/sysctl.d/60-sealane.conf "$root/usr/lib/sysctl.d/"
    cp deploy/apparmor/libvirt-qemu.d-sealane "$root/etc/apparmor.d/abstractions/libvirt-qemu.d/sealane"
    cp deploy/apparmor/sealane-relay "$root/usr/share/sealane/apparmor/"
    cp deploy/selinux/sealane.te "$root/usr/share/sealane/selinux/"
    cp deploy/libvirt/qemu-hook "$root/usr/share/sealane/libvirt/"
    echo /etc/apparmor.d/abstractions/libvirt-qemu.d/sealane >"$root/DEBIAN/conffiles"
    other=gateway
    summary="carries live migrations of virtual machines in sealed lanes"
    recommends="Recommends: qemu-system-x86 | libvirt-clients"
else
    mkdir -p "$root/usr/share/sealane/siem"
    cp deploy/siem/* "$root/usr/share/sealane/siem/"
    other=relay
    summary="decides on, records and permits live migrations of virtual machines"
    recommends="Recommends: bash-completion
Suggests: python3-gssapi"
    depends="$depends, passwd"
fi
chmod 750 "$root/etc/sealane"

cat >"$root/DEBIAN/control" <<CONTROL
Package: sealane-$kind
Version: $version
Architecture: $arch
Maintainer: Sealane maintainers <maintainers@users.noreply.invalid>
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: $depends
$recommends
Conflicts: sealane-$other
Section: admin
Priority: optional
Description: Sealane $kind: $summary
 Live migrations run encrypted and authenticated between the hosts that a policy
 allows, and leave a record that an auditor can check.
CONTROL
for script in postinst prerm postrm; do
    install -m 755 "deploy/debian/$kind.$script" "$root/DEBIAN/$script"
done
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --build "$root" "$stage/package.deb" >/dev/null
mv "$stage/package.deb" "$out/sealane-${kind}_${version}_${arch}.deb" # a build that is cut off leaves none
echo "$out/sealane-${kind}_${version}_${arch}.deb"
