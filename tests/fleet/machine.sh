#!/usr/bin/env bash
# The insides of a machine made of namespaces, called by rack.py with a machine's variables:
#
#   machine.sh switch     the network of all machines, and their disks, for as long as standard input stays open
#   machine.sh plug       a cable from the switch, then new namespaces, then `init` in them
#   machine.sh init       the machine itself: its disk becomes /, sshd its first process
#
# $FOLDER the rack's folder, $VISIBLE what of this computer is there to read (a path each line), $SHARED the folder that
# machines share and $MOUNTED where; $NAME, $PORT (its number at the switch), $ADDRESS (with prefix length), $USER_NAME,
# $HOME_SCRIPT (run as that user when the disk is new), $ENVIRONMENT (of every login, NAME=value each line).
set -euo pipefail

switch() {
  mount -t tmpfs -o mode=755 disks "$FOLDER/disks"
  ip link set lo up
  ip link add switch type bridge
  ip link set switch up
  echo ready
  read -r || true
}

plug() {
  # One network card for life: others go on talking to the card they know.
  ip link add "port$PORT" type veth peer name "cable$PORT" address "$(printf '02:00:00:00:%02x:%02x' $((PORT / 256)) $((PORT % 256)))"
  ip link set "port$PORT" master switch up
  exec 8</proc/self/ns/net
  exec unshare --net --mount --pid --uts --ipc --fork --kill-child --propagation private bash "$0" init "$FOLDER" "$NAME"
}

init() {
  local disk=$FOLDER/disks/$NAME
  root=$disk/root
  network
  mkdir -p "$disk"/{upper,work,root,homes,home-of-root}
  mount -t overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" overlay "$root"
  devices
  # Homes of its own: nothing that a real user keeps there, such as a token of Ray, is seen.
  mount --bind "$disk/homes" "$root/home"
  mount --bind "$disk/home-of-root" "$root/root"
  chmod 711 "$root/root"
  while read -r path; do
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
  done <<<"$VISIBLE"
  mkdir -p "$root$MOUNTED" "$root/run/sshd"
  mount --bind "$SHARED" "$root$MOUNTED"
  [[ -e $disk/installed ]] || install_user
  touch "$disk/installed"
  cd "$root"
  mkdir -p old-root
  pivot_root . old-root
  umount -l old-root
  exec 8<&-
  exec /usr/sbin/sshd -D -e -f /etc/ssh/sshd_fleet
}

network() {
  exec 9</proc/self/ns/net
  nsenter --net=/proc/self/fd/8 ip link set "cable$PORT" netns /proc/self/fd/9
  exec 9<&-
  ip link set "cable$PORT" name eth0
  ip addr add "$ADDRESS" dev eth0
  ip link set eth0 up
  ip link set lo up
  echo "$NAME" >/proc/sys/kernel/hostname
}

devices() {
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  # Two CPUs, however many this computer has.
  mount -t tmpfs cgroup "$root/sys/fs/cgroup"
  echo "200000 100000" >"$root/sys/fs/cgroup/cpu.max"
  mount -t tmpfs -o mode=755 dev "$root/dev"
  for name in null zero full random urandom tty; do
    touch "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
  done
  mkdir "$root"/dev/{pts,shm}
  mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  for stream in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${stream#*:}" "$root/dev/${stream%:*}"; done
  mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
  mount -t tmpfs -o mode=1777 tmp "$root/tmp"
}

install_user() {
  # Without a default route Ray finds a machine's own address by its name.
  { echo "127.0.0.1 localhost"; echo "${ADDRESS%/*} $NAME"; } >"$root/etc/hosts"
  chroot "$root" id "$USER_NAME" >/dev/null 2>&1 ||
    chroot "$root" useradd --no-create-home --shell /bin/bash --password '*' "$USER_NAME"
  local home
  home=$(chroot "$root" getent passwd "$USER_NAME" | cut -d: -f6)
  mkdir -p "$root$home/.ssh"
  cp -rT /etc/skel "$root$home"
  cp "$FOLDER/$NAME.pub" "$root$home/.ssh/authorized_keys"
  chmod 700 "$root$home/.ssh"
  chroot "$root" chown -R "$USER_NAME:" "$home/.ssh"
  find "$root$home" -maxdepth 1 -exec chown --reference="$root$home/.ssh" {} +
  # An installer of packages has nobody to ask here: what it wants must be on the disk.
  printf '[global]\nno-index = true\ndisable-pip-version-check = true\n[install]\nno-build-isolation = false\n' \
    >"$root/etc/pip.conf"
  {
    echo "ListenAddress ${ADDRESS%/*}"
    printf '%s\n' "HostKey /etc/ssh/fleet_host_key" "PasswordAuthentication no" "UsePAM no" "PidFile none" \
      "PermitRootLogin prohibit-password" "MaxStartups 50"
    [[ -z $ENVIRONMENT ]] || echo "SetEnv" $ENVIRONMENT
  } >"$root/etc/ssh/sshd_fleet"
  install -m 600 "$FOLDER/host_key" "$root/etc/ssh/fleet_host_key"
  if [[ -n $HOME_SCRIPT ]]; then
    chroot "$root" setpriv --reuid "$USER_NAME" --regid "$(chroot "$root" id -g "$USER_NAME")" --init-groups \
      env -i HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin bash -euc "cd; $HOME_SCRIPT"
  fi
}

"$1"
