//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpcwire"
)

// A founder is a machine with the folders that sarn init writes to.
type founder struct {
	*machine
	bin, dir string
	as       string // its name in the cluster
	proc     *process
}

func (f *founder) flags() []string {
	return []string{"-node", f.as, "-config-dir", filepath.Join(f.dir, "etc"), "-data-dir", filepath.Join(f.dir, "lib")}
}

// init runs a command that begins with "sarn init", as somebody has copied it.
func (f *founder) init(command string) {
	f.t.Helper()
	argv := append([]string{f.bin}, strings.Fields(command)[1:]...)
	f.proc = start(f.t, f.as, nil, f.argv("", append(argv, f.flags()...)...)...)
}

// sarn runs a command with a token, from a file.
func (f *founder) sarn(tokenFile string, args ...string) (string, bool) {
	return f.run("", append([]string{"env", "SARN_HTTP_TOKEN_FILE=" + tokenFile, f.bin}, args...)...)
}

var joinCommand = regexp.MustCompile(`sarn init -join (sarn-join-[A-Za-z0-9_-]+)`)

// inside runs f in a thread that is on the machine: sockets that it makes stay there.
func (m *machine) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := os.Open(filepath.Join("/var/run/netns", m.name))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// asks makes a call of the servers over a connection that is secured in one way.
func (m *machine) asks(sec *rpcwire.Security, to string) error {
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	client := rpcwire.NewClient(func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = m.inside(func() error {
			conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp4", address)
			return err
		})
		if err != nil {
			return nil, err
		}
		return sec.Secure(ctx, conn, rpcwire.ProtoRPC, "dc1")
	})
	defer client.Close()
	return client.Call(ctx, to, operator.LeaderCall.Name, &operator.StatusRequest{}, &operator.LeaderReply{})
}

// TestSecureStart sets up three servers and two clients by what sarn init prints, and sees that nobody else gets in.
func TestSecureStart(t *testing.T) {
	bin := binary(t)
	all := machines(t, "stranger", "s1", "s2", "s3", "c1", "c2")
	made := map[string]*founder{}
	for i, name := range []string{"stranger", "s1", "s2", "s3", "c1", "c2"} {
		made[name] = &founder{machine: all[i], bin: bin, dir: t.TempDir(), as: name}
	}
	defer func() { // nobody waits for them to leave
		for _, f := range made {
			if f.proc != nil {
				f.proc.cmd.Process.Kill()
			}
		}
	}()
	s1, s2, s3, c1, c2, stranger := made["s1"], made["s2"], made["s3"], made["c1"], made["c2"], made["stranger"]
	operatorToken := filepath.Join(s1.dir, "lib", "operator.token")

	s1.init("sarn init")
	var commands [][]string
	eventually(t, 60*time.Second, "sarn init tells how to join", func() bool {
		commands = joinCommand.FindAllStringSubmatch(s1.proc.output(), -1)
		return len(commands) == 2
	})
	s2.init(commands[0][0])
	c1.init(commands[1][0])
	token := func(by *founder, kind string) string {
		t.Helper()
		out, ok := by.sarn(operatorToken, "join-token", kind)
		m := joinCommand.FindStringSubmatch(out)
		if !ok || m == nil {
			t.Fatalf("no join token: %s", out)
		}
		return m[0]
	}
	s3.init(token(s1, "-server"))
	eventually(t, 60*time.Second, "the first client answers", func() bool {
		out, ok := c1.sarn(operatorToken, "catalog", "nodes")
		return ok && strings.Contains(out, "s1")
	})
	c2.init(token(c1, "-client"))
	eventually(t, 60*time.Second, "all are members", func() bool {
		out, _ := c2.sarn(operatorToken, "members")
		return strings.Count(out, "alive") == 5
	})

	t.Run("nothing is for others to read", func(t *testing.T) {
		for _, f := range []*founder{s1, s2, s3, c1, c2} {
			for _, name := range []string{"etc/init.hcl", "lib/tls/ca-key.pem", "lib/tls/server.pem"} {
				info, err := os.Stat(filepath.Join(f.dir, name))
				client := f == c1 || f == c2
				if client && name != "etc/init.hcl" {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("client %s has %s: %v", f.as, name, err)
					}
				} else if err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %s: %v %v", f.as, name, info, err)
				}
			}
		}
		secret, err := os.ReadFile(operatorToken)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []*founder{s1, s2, s3, c1, c2} {
			if strings.Contains(f.proc.output(), strings.TrimSpace(string(secret))) {
				t.Errorf("the log of %s shows the operator's token", f.as)
			}
		}
	})

	t.Run("a token is good once", func(t *testing.T) {
		refused := func(why, command string, want ...string) {
			t.Helper()
			argv := append([]string{bin}, strings.Fields(command)[1:]...)
			name := fmt.Sprintf("n%d", time.Now().UnixNano())
			if len(want) > 1 {
				name = want[1]
			}
			dir := t.TempDir()
			out, ok := stranger.run("", append(argv, "-node", name, "-config-dir", dir+"/etc", "-data-dir", dir+"/lib")...)
			if ok || !strings.Contains(out, want[0]) {
				t.Errorf("%s: %s", why, out)
			}
			if left, _ := filepath.Glob(dir + "/*/*.*"); len(left) > 0 {
				t.Errorf("%s left %v", why, left)
			}
		}
		refused("a server's token a second time", commands[0][0], "was used before")
		refused("a client's token a second time", commands[1][0], "was used before")
		fresh := token(s2, "-client")
		parsed, err := intro.ParseJoinToken(strings.Fields(fresh)[3])
		if err != nil {
			t.Fatal(err)
		}
		refused("the name of a server", fresh, `there is a node "S1" already`, "S1")
		changed := *parsed
		changed.Server = true
		refused("a client's token for a server", "sarn init -join "+changed.Text(), "for another kind")
		changed = *parsed
		changed.Pin[0] ^= 1
		refused("another authority", "sarn init -join "+changed.Text(), "somebody is in between")
		changed = *parsed
		changed.Secret[0] ^= 1
		refused("another secret", "sarn init -join "+changed.Text(), "is not accepted")
		if out, ok := s2.run("", append([]string{bin, "init"}, s2.flags()...)...); ok || !strings.Contains(out, "There is a configuration already") {
			t.Errorf("init in folders that are in use: %s", out)
		}
	})

	t.Run("who has no token may do nothing", func(t *testing.T) {
		for _, f := range []*founder{s2, c1} {
			if out := f.call("", "http://127.0.0.1:8500/v1/catalog/nodes"); strings.TrimSpace(out) != "[]" {
				t.Errorf("nodes at %s: %s", f.as, out)
			}
			for _, path := range []string{"/v1/kv/a", "/v1/agent/self", "/v1/operator/raft/configuration"} {
				if out := f.call("", "http://127.0.0.1:8500"+path); !strings.Contains(out, "Permission denied") {
					t.Errorf("%s at %s: %s", path, f.as, out)
				}
			}
			if out := f.must("", "curl", "-sS", "-X", "PUT", "http://127.0.0.1:8500/v1/operator/join-token"); !strings.Contains(out, "Permission denied") {
				t.Errorf("a join token for nobody: %s", out)
			}
		}
	})

	t.Run("who has no certificate is not heard", func(t *testing.T) {
		ca, err := os.ReadFile(filepath.Join(s1.dir, "lib/tls/ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		file := filepath.Join(s1.dir, "lib/tls/server.pem")
		cert, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			t.Fatal(err)
		}
		roots := func() *x509.CertPool { return pool }
		to := s2.addr + ":8300"
		if err := stranger.asks(&rpcwire.Security{Roots: roots, VerifyServerHostname: true, Certificate: func() *tls.Certificate { return &cert }}, to); err != nil {
			t.Errorf("with a certificate: %v", err)
		}
		if err := stranger.asks(&rpcwire.Security{Roots: roots, VerifyServerHostname: true}, to); err == nil {
			t.Error("a call without a certificate is answered")
		}
		if err := stranger.asks(&rpcwire.Security{}, to); err == nil {
			t.Error("a call in plain text is answered")
		}
	})

	t.Run("who has no gossip key does not join", func(t *testing.T) {
		start(t, "stranger", nil, stranger.argv("", bin, "agent", "-node", "stranger", "-bind", stranger.addr, "-data-dir", t.TempDir(), "-log-level", "err")...)
		var out string
		eventually(t, 20*time.Second, "the stranger's agent answers", func() bool {
			_, ok := stranger.sarn("/dev/null", "members")
			return ok
		})
		out, ok := stranger.sarn("/dev/null", "join", s2.addr)
		if ok {
			t.Errorf("joined: %s", out)
		}
		if out, _ = c1.sarn(operatorToken, "members"); strings.Contains(out, "stranger") {
			t.Errorf("members: %s", out)
		}
	})

	found := func(by *founder) bool {
		out, _ := by.sarn(operatorToken, "catalog", "nodes", "-service", "web")
		return strings.Contains(out, "c1")
	}
	if out, ok := c1.sarn(operatorToken, "services", "register", "-name", "web", "-port", "80"); !ok {
		t.Fatal(out)
	}
	eventually(t, 30*time.Second, "the other client finds the service", func() bool { return found(c2) })
	eventually(t, 60*time.Second, "three servers vote", func() bool {
		out, _ := s2.sarn(operatorToken, "operator", "raft", "list-peers")
		return strings.Count(out, "true") == 3
	})

	// The first server is nothing special: without it, all goes on, and machines join.
	s1.proc.end(syscall.SIGKILL)
	eventually(t, 60*time.Second, "the others go on", func() bool {
		_, ok := c2.sarn(operatorToken, "kv", "put", "a", "b")
		return ok && found(c2)
	})
	stranger.as, stranger.dir = "c3", t.TempDir()
	stranger.init(token(s3, "-client"))
	eventually(t, 60*time.Second, "another machine has joined", func() bool {
		out, ok := stranger.sarn(operatorToken, "catalog", "nodes")
		return ok && strings.Contains(out, "c3")
	})
}
