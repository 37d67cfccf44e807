#!/bin/sh
# Installs `tidegate serve` as a service of this machine: systemd on Linux, launchd on a Mac. Run it again to update:
# what you changed in tidegate.toml stays. DESTDIR puts the files below another folder.
set -eu
# The service reads these files as another user.
umask 022

usage() {
    echo 'usage: sudo sh deploy/install.sh [--binary FILE] [--no-start] | --uninstall [--purge]'
    echo '  --binary FILE  the program; otherwise target/release/tidegate'
    echo '  --no-start     only put the files in place'
    echo '  --uninstall    stop the service and remove it; settings, history and models stay'
    echo '  --purge        with --uninstall: remove those, too'
}

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
binary=$here/../target/release/tidegate
action=install start=yes purge=no
while [ $# -gt 0 ]; do
    case $1 in
        --binary) [ $# -gt 1 ] || fail '--binary wants a file'; binary=$2; shift ;;
        --no-start) start=no ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
[ "$purge" = no ] || [ "$action" = uninstall ] || fail '--purge goes with --uninstall'

program=/usr/local/bin/tidegate
label=app.tidegate.serve
system=$(uname -s)
case $system in
    Linux)
        config_dir=/etc/tidegate
        data_dir=/var/lib/tidegate
        service=/etc/systemd/system/tidegate.service
        ;;
    Darwin)
        config_dir=/usr/local/etc/tidegate
        data_dir=/usr/local/var/tidegate
        service=/Library/LaunchDaemons/$label.plist
        ;;
    *) fail "there is no service for $system" ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 'a service of this machine is installed by root: use sudo'

# A copy beside the target that then takes its place: a program that runs can't be written to.
put() { # FROM TO MODE
    mkdir -p "$(dirname "$root$2")"
    cp "$1" "$root$2.new"
    chmod "$3" "$root$2.new"
    mv -f "$root$2.new" "$root$2"
}

install_files() {
    [ -f "$binary" ] || fail "there is no program $binary: build it with \`cargo build --release -p cli\`, or name it with --binary"
    made=$(mktemp)
    trap 'rm -f "$made"' EXIT
    put "$binary" "$program" 755
    if [ ! -e "$root$config_dir/tidegate.toml" ]; then
        sed -e "s|@DATA@|$data_dir|" -e "s|@LOG@|$data_dir/tidegate.log|" "$here/tidegate.toml" > "$made"
        if [ "$system" = Darwin ]; then
            # No journal keeps what is written to standard error there.
            sed -e 's|^# \(file = .*/tidegate.log"\)|\1|' "$made" > "$made.log"
            mv -f "$made.log" "$made"
        fi
        put "$made" "$config_dir/tidegate.toml" 644
    fi
    if [ "$system" = Darwin ]; then
        user=${SUDO_USER:-$(id -un)}
        mkdir -p "$root$data_dir"
        [ -n "$root" ] || chown "$user" "$data_dir"
        chmod 700 "$root$data_dir"
        sed -e "s|@USER@|$user|" "$here/launchd/$label.plist" > "$made"
        put "$made" "$service" 644
    else
        put "$here/systemd/tidegate.service" "$service" 644
    fi
}

start_service() {
    if [ "$system" = Darwin ]; then
        # One that isn't loaded can't be unloaded.
        launchctl bootout "system/$label" 2> /dev/null || :
        launchctl bootstrap system "$root$service"
    else
        systemctl daemon-reload
        systemctl enable tidegate.service
        systemctl restart tidegate.service
    fi
}

stop_service() {
    if [ "$system" = Darwin ]; then
        launchctl bootout "system/$label" 2> /dev/null || :
    else
        systemctl disable --now tidegate.service 2> /dev/null || :
    fi
}

if [ "$action" = install ]; then
    install_files
    if [ "$start" = yes ]; then
        start_service
        echo "Tidegate is served; curl http://127.0.0.1:11500/health tells how it is."
    fi
    echo "What it does is said in $root$config_dir/tidegate.toml; models belong into $root$data_dir/models."
else
    [ "$start" = no ] || stop_service
    rm -f "$root$service" "$root$program"
    if [ "$system" = Linux ] && [ "$start" = yes ]; then
        systemctl daemon-reload
    fi
    if [ "$purge" = yes ]; then
        rm -rf "$root$config_dir" "$root$data_dir"
        # What the link of a dynamic user's folder leads to.
        [ "$system" = Darwin ] || rm -rf "$root/var/lib/private/tidegate"
        echo 'Tidegate is gone from this machine.'
    else
        echo "Tidegate is uninstalled; $root$config_dir and $root$data_dir stay."
    fi
fi
