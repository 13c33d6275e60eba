//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// packages makes all packages of the binaries, by architecture, and returns the folder they are in.
func packages(t *testing.T, binaries map[string]string) string {
	t.Helper()
	stage, out := t.TempDir(), t.TempDir()
	for arch, path := range binaries {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(stage, "sarn-linux-"+arch), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(tool(t, "packager"), "-version", "1.2.3-rc1", "-commit", "0123456789ab", "-date", "2026-01-02T03:04:05+01:00", "-stage", stage, "-out", out)
	cmd.Dir = "../../packaging"
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// small is a file in place of a binary.
func small(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sarn")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// The same sources make the same bytes, for each architecture.
func TestPackagesAreReproducible(t *testing.T) {
	binaries := map[string]string{"amd64": small(t), "arm64": small(t)}
	first := sums(t, packages(t, binaries))
	for _, name := range []string{
		"sarn_1.2.3~rc1-1_amd64.deb", "sarn_1.2.3~rc1-1_arm64.deb", "sarn-consul-compat_1.2.3~rc1-1_all.deb",
		"sarn-1.2.3~rc1-1.x86_64.rpm", "sarn-1.2.3~rc1-1.aarch64.rpm", "sarn-consul-compat-1.2.3~rc1-1.noarch.rpm",
		"sarn-1.2.3-rc1-oci.tar", "sarn-1.2.3-rc1-oci/index.json",
	} {
		if first[name] == "" {
			t.Errorf("no %s was made", name)
		}
	}
	second := sums(t, packages(t, binaries))
	for name, sum := range first {
		if second[name] != sum {
			t.Errorf("%s is another one the second time", name)
		}
	}
	if len(first) != len(second) || len(first) < 14 {
		t.Errorf("%d files, and %d the second time", len(first), len(second))
	}
}

// sums are the checksums of all files below a folder, by their paths in it.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = digest(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// installation is what packages are tried with: on a copy of this machine's file system that is in memory and ends with the
// command, with a network of its own. $1 is an empty folder, $2 that with the packages, and the rest is done on the copy.
const installation = `set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs none "$1/root/run"
ip link set lo up
mkdir -p "$1/root/mnt"
mount --bind "$2" "$1/root/mnt"
exec env -u NOTIFY_SOCKET PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C chroot "$1/root" /bin/sh -ec "$3"
`

// onCopy runs a script on a copy of this machine, and returns what it prints.
func onCopy(t *testing.T, packages, script string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("installs packages, which needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "sh", "-c", installation, "sh", t.TempDir(), packages, script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// wantLines tells which lines are not in the output, in their order.
func wantLines(t *testing.T, out string, want ...string) {
	t.Helper()
	rest := strings.Split(out, "\n")
	for _, w := range want {
		re := regexp.MustCompile("^" + w + "$")
		i := 0
		for i < len(rest) && !re.MatchString(strings.TrimSpace(rest[i])) {
			i++
		}
		if i == len(rest) {
			t.Errorf("no line %q where it is expected, in\n%s", w, out)
			return
		}
		rest = rest[i+1:]
	}
}

// runPackaged runs the agent of the package as its service would.
const runPackaged = `
cd /
setpriv --reuid sarn --regid sarn --clear-groups --no-new-privs --bounding-set=-all /usr/bin/sarn agent -config-dir /etc/sarn >/tmp/agent.log 2>&1 &
agent=$!
i=0
until sarn members >/tmp/members 2>&1; do
	i=$((i+1)); [ $i -lt 600 ] || { cat /tmp/agent.log; exit 1; }
	sleep 0.2
done
awk 'NR == 2 { print "member", $2, $3 }' /tmp/members
kill -TERM $agent
wait $agent && echo "agent ended with 0" || echo "agent ended with $?"
`

func TestPackagesInstallAndRun(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	dir := packages(t, map[string]string{runtime.GOARCH: binary(t), other: small(t)})
	t.Run("deb", func(t *testing.T) { installDebian(t, dir) })
	t.Run("rpm", func(t *testing.T) { installRPM(t, dir) })
	t.Run("image", func(t *testing.T) { tryImage(t, filepath.Join(dir, "sarn-1.2.3-rc1-oci")) })
}

// names are the architecture's names in those of Debian's packages and in those of RPM.
func names() (deb, rpm string) {
	if runtime.GOARCH == "arm64" {
		return "arm64", "aarch64"
	}
	return "amd64", "x86_64"
}

func installDebian(t *testing.T, dir string) {
	arch, _ := names()
	out := onCopy(t, dir, "package=/mnt/sarn_1.2.3~rc1-1_"+arch+".deb"+`
rm -f /var/lib/man-db/auto-update # it takes long, and is not what is tried
dpkg -i $package >/dev/null
stat -c '%U:%G %a %n' /usr/bin/sarn /etc/sarn /etc/sarn/sarn.hcl /var/lib/sarn /usr/lib/systemd/system/sarn.service /usr/share/man/man1/sarn.1.gz
getent passwd sarn
sarn validate /etc/sarn
if command -v systemd-analyze >/dev/null; then systemd-analyze verify --man=no /usr/lib/systemd/system/sarn.service; fi
echo verified
bash -c '. /usr/share/bash-completion/completions/sarn && complete -p sarn'
`+runPackaged+`
[ -e /usr/bin/consul ] || echo 'no consul'
dpkg -i /mnt/sarn-consul-compat_*.deb >/dev/null
consul version | head -n 1
dpkg -r sarn-consul-compat >/dev/null
[ -e /usr/bin/consul ] || echo 'no consul any more'

echo '# mine' >>/etc/sarn/sarn.hcl
chmod 0600 /etc/sarn/sarn.hcl
dpkg -i $package >/dev/null
stat -c 'again %U:%G %a %n' /etc/sarn/sarn.hcl
tail -n 1 /etc/sarn/sarn.hcl

dpkg -r sarn >/dev/null 2>&1
[ -e /usr/bin/sarn ] || echo 'removed'
ls /etc/sarn
[ -e /var/lib/sarn/node-id ] && echo 'data is kept'
dpkg -P sarn >/dev/null 2>&1
[ -e /etc/sarn ] || [ -e /var/lib/sarn ] || echo 'purged'
getent passwd sarn >/dev/null && echo 'the user stays'

dpkg -i $package >/dev/null
sarn init -no-start -node first -advertise 127.0.0.1 >/dev/null
stat -c '%U %a %n' /etc/sarn/init.hcl /var/lib/sarn/tls/ca-key.pem
export SARN_HTTP_TOKEN_FILE=/var/lib/sarn/operator.token
`+runPackaged+`
`)
	wantLines(t, out,
		"root:root 755 /usr/bin/sarn", "root:sarn 750 /etc/sarn", "root:sarn 640 /etc/sarn/sarn.hcl", "sarn:sarn 700 /var/lib/sarn",
		"root:root 644 /usr/lib/systemd/system/sarn.service", "root:root 644 /usr/share/man/man1/sarn.1.gz",
		"sarn:x:[1-9][0-9]*:[1-9][0-9]*:Sarn agent:/var/lib/sarn:/usr/sbin/nologin", "Configuration is valid!", "verified",
		"complete -o nospace -C '/usr/bin/sarn' sarn",
		"member 127.0.0.1:8301 alive", "agent ended with 0", "no consul", "Sarn v.*", "no consul any more",
		"again root:sarn 600 /etc/sarn/sarn.hcl", "# mine",
		"removed", "sarn.hcl", "data is kept", "purged", "the user stays",
		"sarn 6[04]0 /etc/sarn/init.hcl", "sarn 600 /var/lib/sarn/tls/ca-key.pem", "member 127.0.0.1:8301 alive", "agent ended with 1")
}

func installRPM(t *testing.T, dir string) {
	_, arch := names()
	if _, err := exec.LookPath("rpm"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	// This is no system with RPM: its database is empty, and what the package depends on is not in it.
	out := onCopy(t, dir, "package=/mnt/sarn-1.2.3~rc1-1."+arch+".rpm"+`
rpm -qp --requires --conflicts /mnt/sarn-consul-compat-*.rpm
rpm -qp --queryformat '%{NAME} %{VERSION} %{RELEASE} %{LICENSE} %{OS}\n' $package
rpm -qpc $package
rpm -i --force-debian --nodeps $package
stat -c '%U:%G %a %n' /usr/bin/sarn /etc/sarn /etc/sarn/sarn.hcl /var/lib/sarn /usr/lib/systemd/system/sarn.service
`+runPackaged+`
rpm -i --force-debian --nodeps /mnt/sarn-consul-compat-*.rpm
consul version | head -n 1
rpm -e --force-debian --nodeps sarn-consul-compat
echo '# mine' >>/etc/sarn/sarn.hcl
rpm -e --force-debian sarn 2>/dev/null
[ -e /usr/bin/sarn ] || echo removed
ls /etc/sarn
[ -e /var/lib/sarn/node-id ] && echo 'data is kept'
`)
	wantLines(t, out, "sarn", "consul", "sarn 1.2.3~rc1 1 Apache-2.0 linux", "/etc/sarn/sarn.hcl",
		"root:root 755 /usr/bin/sarn", "root:sarn 750 /etc/sarn", "root:sarn 640 /etc/sarn/sarn.hcl", "sarn:sarn 700 /var/lib/sarn",
		"root:root 644 /usr/lib/systemd/system/sarn.service", "member 127.0.0.1:8301 alive", "agent ended with 0", "Sarn v.*",
		"removed", "sarn.hcl.rpmsave", "data is kept")
}

// An imageReader reads an image in the OCI layout.
type imageReader struct {
	t   *testing.T
	dir string
}

type imageRef struct {
	MediaType, Digest string
	Size              int64
	Platform          struct{ Architecture, OS string }
	Annotations       map[string]string
}

// blob returns what a descriptor names, which must be what it says.
func (r imageReader) blob(d imageRef) []byte {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.dir, "blobs", strings.Replace(d.Digest, ":", "/", 1)))
	if err != nil {
		r.t.Fatal(err)
	}
	if digest(data) != d.Digest || int64(len(data)) != d.Size {
		r.t.Fatalf("%s has %d bytes and is %s", d.Digest, len(data), digest(data))
	}
	return data
}

func (r imageReader) decode(data []byte, v any) {
	r.t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		r.t.Fatal(err)
	}
}

// unpack puts a layer into a folder.
func (r imageReader) unpack(layer []byte, root string) {
	r.t.Helper()
	in := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			r.t.Fatal(err)
		}
		path := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var data []byte
			if data, err = io.ReadAll(in); err == nil {
				err = os.WriteFile(path, data, 0o644)
			}
		}
		if err := errors.Join(err, os.Chown(path, h.Uid, h.Gid), os.Chmod(path, h.FileInfo().Mode())); err != nil {
			r.t.Fatal(err)
		}
	}
}

func tryImage(t *testing.T, dir string) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := imageReader{t, dir}
	var top, all struct{ Manifests []imageRef }
	data, err := os.ReadFile(filepath.Join(r.dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.decode(data, &top)
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "1.2.3-rc1" {
		t.Fatalf("index.json: %s", data)
	}
	r.decode(r.blob(top.Manifests[0]), &all)
	if len(all.Manifests) != 2 {
		t.Fatalf("%d images, want one for each architecture", len(all.Manifests))
	}
	for _, image := range all.Manifests {
		var m struct {
			Config imageRef
			Layers []imageRef
		}
		var c struct {
			Architecture, OS, Created string
			Config                    struct {
				User, WorkingDir, StopSignal string
				Env, Entrypoint, Cmd         []string
				Labels                       map[string]string
			}
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		r.decode(r.blob(image), &m)
		r.decode(r.blob(m.Config), &c)
		if c.Architecture != image.Platform.Architecture || c.OS != "linux" || c.Created != "2026-01-02T02:04:05Z" || c.Config.User != "65532:65532" ||
			c.Config.Labels["org.opencontainers.image.revision"] != "0123456789ab" || len(m.Layers) != 1 {
			t.Errorf("%s is described as %+v", image.Platform.Architecture, c)
		}
		packed, err := gzip.NewReader(bytes.NewReader(r.blob(m.Layers[0])))
		if err != nil {
			t.Fatal(err)
		}
		layer, err := io.ReadAll(packed)
		if err != nil {
			t.Fatal(err)
		}
		if digest(layer) != c.RootFS.DiffIDs[0] {
			t.Errorf("the layer is %s, want %s", digest(layer), c.RootFS.DiffIDs[0])
		}
		if image.Platform.Architecture == runtime.GOARCH {
			runImage(t, r, layer, append(c.Config.Entrypoint, c.Config.Cmd...))
		}
	}
}

// runImage runs the only program there is on the image's file system, as its user.
func runImage(t *testing.T, r imageReader, layer []byte, argv []string) {
	t.Helper()
	root, err := os.MkdirTemp("", "sarn-image-") // everybody may enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	r.unpack(layer, root)
	a := &agent{name: "image", ports: map[string]int{}}
	argv = append([]string{"chroot", "--userspec=65532:65532", root}, argv...)
	argv = append(argv, "-server", "-bootstrap-expect=1", "-bind", "127.0.0.1", "-node", "image")
	for i, flag := range []string{"http", "dns", "grpc", "grpc-tls", "server", "serf-lan", "serf-wan"} {
		if i == 0 {
			for i, p := range freePorts(7) {
				a.ports[strconv.Itoa(i)] = p
			}
			a.ports["http"] = a.ports["0"]
		}
		argv = append(argv, fmt.Sprintf("-%s-port=%d", flag, a.ports[strconv.Itoa(i)]))
	}
	a.process = start(t, "image", nil, argv...)
	eventually(t, time.Minute, "a leader", func() bool { return a.leader() != "" })
	if status, body, err := a.call("PUT", "/v1/kv/a", "b"); err != nil || status != 200 || strings.TrimSpace(body) != "true" {
		t.Errorf("a write: %d %q, %v", status, body, err)
	}
	owner := new(syscall.Stat_t)
	if err := syscall.Stat(filepath.Join(root, "var/lib/sarn/node-id"), owner); err != nil || owner.Uid != 65532 {
		t.Errorf("node-id is %d's, %v", owner.Uid, err)
	}
}

// What started the agent hears when it serves, loads its configuration, is well and stops, and takes its end for what was
// asked for.
func TestAgentTellsServiceManager(t *testing.T) {
	bin := binary(t)
	socket := "@sarn-e2e-" + strconv.Itoa(os.Getpid())
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hears := func(want string) {
		t.Helper()
		l.SetReadDeadline(time.Now().Add(time.Minute))
		for buf := make([]byte, 4096); ; {
			n, err := l.Read(buf)
			if err != nil {
				t.Fatalf("%q is not told: %v", want, err)
			}
			if strings.Contains("\n"+string(buf[:n])+"\n", "\n"+want) {
				return
			}
		}
	}
	a := newAgent(t, "told", map[string]any{"server": true, "bootstrap_expect": 1})
	a.process = start(t, a.name, []string{"NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=200000"}, bin, "agent", "-config-file", a.conf)
	hears("STATUS=Starting\n")
	hears("READY=1\n")
	if status, _, err := a.call("GET", "/v1/agent/self", ""); err != nil || status != 200 {
		t.Errorf("ready, and a request gets %d, %v", status, err)
	}
	for range 3 {
		hears("WATCHDOG=1\n")
	}
	a.cmd.Process.Signal(syscall.SIGHUP)
	hears("RELOADING=1\n")
	hears("READY=1\n")
	a.cmd.Process.Signal(syscall.SIGTERM)
	hears("STOPPING=1\n")
	if code, ended := a.exit(time.Minute); !ended || code != 0 {
		t.Errorf("ended %v with %d, want 0: a server does not leave, and was asked to stop", ended, code)
	}
}
