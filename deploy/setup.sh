#!/usr/bin/env bash
# Prepares this checkout for one goal of the Makefile, says what it does, and does nothing that is already done.
#
#   deploy/setup.sh check|demo|test|bench
#
# Debian packages (only those whose commands are missing), then .venv from the hashed lock, then this project in it.
# All messages go to stderr, so that `make demo ARGS=--json` keeps stdout for its JSON.
set -eu
cd "$(dirname "$0")/.."
goal=${1:-check}
PATH=$PATH:/usr/sbin:/sbin # haproxy lives there, and the PATH of an ordinary user lacks it

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

guests="qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils as=binutils ld=binutils"
directory="samba=samba-ad-dc samba-tool=samba-common-bin /usr/share/samba/setup/provision.ldif=samba-ad-provision"
issuer="node=nodejs npm=npm"
outsiders="go=golang-go" # reads our log by packages that we did not write; Debian 12 has Go 1.19, which is enough
plugins=/usr/lib/$(uname -m)-linux-gnu/rsyslog
receivers="rsyslogd=rsyslog $plugins/lmnsd_ossl.so=rsyslog-openssl $plugins/imrelp.so=rsyslog-relp lognormalizer=liblognorm-utils"
search="mvn=maven javac=openjdk-17-jdk-headless"
# Two libvirt daemons in namespaces of their own; the packages start no service here, and none is wanted.
libvirt="libvirtd=libvirt-daemon virsh=libvirt-clients ip=iproute2 unshare=util-linux nft=nftables"
libvirt="$libvirt /usr/lib/$(uname -m)-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so=libvirt-daemon-driver-qemu"
bindings="/usr/lib/python3/dist-packages/libvirt.py=python3-libvirt" # by which orchestrators call libvirt
# What the packages of this project are checked by: units, AppArmor profile, SELinux module.
packaging="dpkg-deb=dpkg systemd-analyze=systemd systemd-nspawn=systemd-container apparmor_parser=apparmor checkmodule=checkpolicy semodule_package=semodule-utils"
# Keys in PKCS#11 tokens.
tokens="softhsm2-util=softhsm2 pkcs11-tool=opensc"
# A library that makes system calls fail, for the log's tests (tests/gateway/faulty_disk.c).
compiler="gcc=gcc /usr/include/stdio.h=libc6-dev"
# For the extra gssapi, which is compiled: the directory of the tests is a KDC, too.
kerberos="krb5-config=libkrb5-dev"
case $goal in
check) tools="" ;;
demo) tools=$guests ;;
test) tools="$guests $directory $issuer $receivers $search $libvirt $bindings $packaging $compiler $kerberos $outsiders $tokens socat=socat" ;;
bench) tools="$guests $libvirt $directory $receivers $search haproxy=haproxy stunnel4=stunnel4 socat=socat" ;;
*) die "unknown goal '$goal': use check, demo, test or bench" ;;
esac

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else
        command -v sudo >/dev/null || die "must run '$*' as root: run this as root, or install sudo"
        sudo "$@"
    fi
}

allow_daemons() { # undo forbid_daemons, also when apt failed
    [ -z "${our_policy:-}" ] || as_root rm -f "$our_policy"
    our_policy=""
}

forbid_daemons() { # haproxy, stunnel4, rsyslog and samba are wanted as programs: the install must not start them as services
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap allow_daemons EXIT
        our_policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$our_policy" >/dev/null
        as_root chmod 755 "$our_policy"
    fi
}

install_packages() {
    command -v apt-get >/dev/null || die "missing: $*. This is not Debian: install what provides them, then run again"
    say "installing Debian packages: $*"
    forbid_daemons
    # `env` and not a prefix assignment: sudo drops the caller's environment.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 ||
        die "apt-get update failed: check the network and /etc/apt/sources.list, then run again"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 ||
        die "apt-get could not install: $*. Its message is above"
    allow_daemons
}

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in python3.11 python3 /usr/bin/python3; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
}

# --- Debian packages --------------------------------------------------------------------------------------------
missing=""
for entry in $tools; do
    command -v "${entry%%=*}" >/dev/null || [ -e "${entry%%=*}" ] || missing="$missing ${entry#*=}"
done
if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    [ -n "$python" ] || die "Python 3.11 or newer is missing: install it (Debian 12: apt-get install python3 python3-venv)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
fi
if [ "$goal" = test ]; then # the extra gssapi is compiled
    python=.venv/bin/python
    [ -x $python ] || python=$(find_python)
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null || true)
    [ -e "$include/Python.h" ] || missing="$missing python3-dev"
fi
# shellcheck disable=SC2086  # a list of package names, split on purpose
[ -z "$missing" ] || install_packages $(printf '%s\n' $missing | sort -u)

# --- Virtual environment ----------------------------------------------------------------------------------------
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! is_supported .venv/bin/python; then
    python=$(find_python)
    [ -n "$python" ] || die "Python 3.11 or newer is missing: install it (Debian 12: apt-get install python3 python3-venv)"
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || die "could not make .venv with $python: install its venv module (python3-venv)"
fi

# A stamp holds what was installed last. It is written after success, so an install that was cut short is repeated.
lock_now=$(sha256sum requirements.lock | cut -d' ' -f1)
lock_stamp=.venv/sealane-lock.sha256
if [ "$(cat $lock_stamp 2>/dev/null)" != "$lock_now" ]; then
    say "installing the locked Python packages (a minute or so the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock >&2 ||
        die "pip could not install requirements.lock: check the network or pip's configuration, then run again"
    echo "$lock_now" >$lock_stamp
fi

# The folder is part of the stamp: an editable install points into the folder it was made in.
project_now=$(cat pyproject.toml <(pwd) | sha256sum | cut -d' ' -f1)
project_stamp=.venv/sealane-project.sha256
if [ "$(cat $project_stamp 2>/dev/null)" != "$project_now" ]; then
    say "installing sealane into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2 ||
        die "pip could not install this project: its message is above"
    echo "$project_now" >$project_stamp
fi

# --- What tests and benchmarks need beside it: each by itself, so that they are fetched and made beside each other -----
compile_gssapi() { # the extra gssapi, for the tests of binds with a keytab
    # Sources, and what compiles them, are checked against hashes; nothing else is fetched. pip keeps the result in its cache.
    gssapi_now=$(cat deploy/gssapi/build.lock deploy/gssapi/requirements.lock | sha256sum | cut -d' ' -f1)
    gssapi_stamp=.venv/sealane-gssapi.sha256
    if [ "$(cat $gssapi_stamp 2>/dev/null)" != "$gssapi_now" ]; then
        say "compiling the extra gssapi (a minute the first time)"
        for step in build requirements; do
            .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation \
                -r deploy/gssapi/$step.lock >&2 || die "pip could not install deploy/gssapi/$step.lock: its message is above"
        done
        echo "$gssapi_now" >$gssapi_stamp
    fi
}

fetch_provider() { # a real OpenID provider
    # `npm ci` installs what the lock says and checks each package against its hash there; nothing in them is run.
    provider_now=$(sha256sum tests/oidc_provider/package-lock.json | cut -d' ' -f1)
    provider_stamp=tests/oidc_provider/node_modules/.sealane-lock.sha256
    if [ "$(cat $provider_stamp 2>/dev/null)" != "$provider_now" ]; then
        say "installing the locked npm packages of tests/oidc_provider"
        (cd tests/oidc_provider && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
            die "npm could not install tests/oidc_provider/package-lock.json: check the network or npm's configuration, then run again"
        echo "$provider_now" >$provider_stamp
    fi
}

fetch_search() { # a real Elasticsearch (docs/adr/)
    search_now=$(cd tests/elasticsearch_node && cat pom.xml jars.sha256 ./*.java | sha256sum | cut -d' ' -f1)
    search_stamp=tests/elasticsearch_node/target/stamp.sha256
    if [ "$(cat $search_stamp 2>/dev/null)" != "$search_now" ]; then
        say "fetching Elasticsearch's own jars from Maven Central (82 of them, a minute or so the first time)"
        # Fetched anew, so that no jar of an older list is left; each is checked against its hash before any is run.
        (cd tests/elasticsearch_node && rm -rf target && mvn -q -B -Dstyle.color=never --strict-checksums \
            org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory=target/lib >&2) ||
            die "Maven could not fetch tests/elasticsearch_node/pom.xml: check the network or Maven's configuration, then run again"
        (cd tests/elasticsearch_node/target/lib && sha256sum ./*.jar | sed 's,\./,,' | diff - ../../jars.sha256 >&2) ||
            die "a jar of tests/elasticsearch_node is not the one in jars.sha256: do not run it; find out why"
        (cd tests/elasticsearch_node && javac -cp 'target/lib/*' -d target/classes ./*.java >&2) ||
            die "javac could not compile tests/elasticsearch_node: its message is above"
        echo "$search_now" >$search_stamp
    fi
}

fetch_go() { # Go's packages for transparency logs
    # Once fetched they are in Go's own cache; each is checked against its hash in go.sum.
    (cd tests/interop_go && GOFLAGS=-mod=readonly go mod download >&2) ||
        die "go could not fetch the module of tests/interop_go/go.sum: check the network or GOPROXY, then run again"
    # A client of C2SP tlog-tiles wants a newer Go than Debian 12 has. Go gives toolchains as modules, each checked against its
    # checksum database; as modules they are not executable.
    newer_go=go
    if ! go version | grep -qE 'go1\.(2[4-9]|[3-9][0-9])'; then
        arch=$(go env GOARCH)
        newer=golang.org/toolchain@v0.0.1-go1.24.13.linux-$arch
        newer_go=$(go env GOMODCACHE)/$newer/bin/go
        if [ ! -x "$newer_go" ]; then
            say "fetching Go 1.24 for tests/interop_tiles and tests/interop (75 MB, once)"
            (cd / && GO111MODULE=on GOFLAGS= go mod download "$newer" >&2) || die "go could not fetch $newer: check the network or GOPROXY"
            chmod +x "$(dirname "$newer_go")"/* "$(dirname "$newer_go")"/../pkg/tool/*/*
        fi
    fi
    (cd tests/interop_tiles && GOTOOLCHAIN=local GOFLAGS=-mod=readonly "$newer_go" mod download >&2) ||
        die "go could not fetch the modules of tests/interop_tiles/go.sum: check the network or GOPROXY, then run again"
}

case $goal in
test) steps="compile_gssapi fetch_provider fetch_search fetch_go" ;;
bench) steps="fetch_search" ;;
*) steps="" ;;
esac
running=""
trap 'trap - INT; kill 0' INT # bash has what runs in the background ignore Ctrl-C
for step in $steps; do
    "$step" &
    running="$running $!"
done
failed=0
for step in $running; do
    wait "$step" || failed=1 # each has said why; the others end first, so that none is cut short
done
exit $failed
