//go:build unix

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A postgres is a running PostgreSQL server.
type postgres struct {
	t       *testing.T
	bin     string
	port    int
	process *process
}

// startPostgres runs a server of the test's own, as another user where we are root, which it refuses to be.
func startPostgres(t *testing.T) *postgres {
	t.Helper()
	db := &postgres{t: t, bin: tool(t, "postgresql"), port: freePorts(1)[0]}
	dir, err := os.MkdirTemp("", "sarn-postgresql-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var as []string
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		as = []string{"setpriv", "--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups"}
	}
	data := filepath.Join(dir, "data")
	if out, err := exec.Command("env", append(append([]string{"-C", dir}, as...), filepath.Join(db.bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")...).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	argv := append(append([]string{"env", "-C", dir}, as...), filepath.Join(db.bin, "postgres"), "-D", data, "-p", strconv.Itoa(db.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "max_connections=60")
	db.process = start(t, "postgresql", nil, argv...)
	t.Cleanup(func() { db.signal(syscall.SIGCONT); db.process.end(syscall.SIGINT) })
	eventually(t, 20*time.Second, "PostgreSQL answers", func() bool {
		_, err := db.query(db.port, "select 1")
		return err == nil
	})
	return db
}

// signal reaches the server and all its children.
func (db *postgres) signal(sig syscall.Signal) {
	pid := db.process.cmd.Process.Pid
	syscall.Kill(pid, sig)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, c := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(c); err == nil {
			syscall.Kill(n, sig)
		}
	}
}

func (db *postgres) env(port int) []string {
	return append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(port), "PGUSER=postgres", "PGCONNECT_TIMEOUT=20", "PGAPPNAME="+map[bool]string{true: "direct", false: "mesh"}[port == db.port])
}

// query runs statements by psql, over a connection of its own.
func (db *postgres) query(port int, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(db.bin, "psql"), "-X", "-A", "-t", "-q", "-c", sql)
	cmd.Env = db.env(port)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// tcpListener is a listener with tcp_proxy to the cluster "up".
func tcpListener(port int, socket, more string) string {
	return fmt.Sprintf(`{name: in%d, address: %s, %s filter_chains: [{%s filters: [{name: envoy.filters.network.tcp_proxy, typed_config: {
  "@type": T/filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: up, %s}}]}]}`, port, socketAddress(port), comma(more), comma(socket), accessLog)
}

// tcpMesh starts two proxies that lead to a port with mutual TLS between them. The one beside the service holds it to so
// many connections. Both inspect what clients send.
func tcpMesh(t *testing.T, to, most int) (port int, caller, callee *proxy) {
	ports, ca := freePorts(2), newAuthority(t)
	const inspect = `listener_filters: [{name: tls, typed_config: {"@type": T/filters.listener.tls_inspector.v3.TlsInspector}}, {name: http, typed_config: {"@type": T/filters.listener.http_inspector.v3.HttpInspector}}]`
	callee = startProxy(t, "callee", bootstrap{listeners: tcpListener(ports[1], ca.server(t, "callee", "caller"), inspect),
		clusters: clusterOf("up", fmt.Sprintf("circuit_breakers: {thresholds: [{max_connections: %d}]}", most), to)})
	caller = startProxy(t, "caller", bootstrap{listeners: tcpListener(ports[0], "", inspect), clusters: clusterOf("up", ca.client(t, "caller", "callee"), ports[1])})
	return ports[0], caller, callee
}

// TestDatabaseThroughTheMesh runs pgbench and psql against PostgreSQL behind two proxies: under a storm of clients it
// never sees more connections than its cap; while it hangs, callers fail in time and no more of them get to it; when
// it goes on, so do they.
func TestDatabaseThroughTheMesh(t *testing.T) {
	binary(t)
	db := startPostgres(t)
	const most = 5
	port, caller, callee := tcpMesh(t, db.port, most)

	if out, err := db.query(port, "create table seen (n int); insert into seen select generate_series(1, 1000); select sum(n) from seen"); err != nil || out != "500500" {
		t.Fatalf("%q %v", out, err)
	}
	large, err := db.query(port, "select string_agg(md5(n::text), '') from generate_series(1, 200000) n")
	if err != nil || len(large) != 32*200000 {
		t.Errorf("a large answer has %d bytes, %v", len(large), err)
	}
	for _, args := range [][]string{{"-i", "-q"}, {"-c", "2", "-t", "100"}, {"-c", "1", "-t", "20", "-C", "-M", "prepared"}} {
		cmd := exec.Command(filepath.Join(db.bin, "pgbench"), args...)
		cmd.Env = append(db.env(port), "PGDATABASE=postgres")
		if out, err := cmd.CombinedOutput(); err != nil || args[0] == "-c" && !strings.Contains(string(out), "number of failed transactions: 0") {
			t.Errorf("pgbench %v: %v\n%s", args, err, out)
		}
	}

	t.Run("a storm", func(t *testing.T) {
		if _, err := db.query(db.port, "truncate seen"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		fine, refused := 0, 0
		for range 40 {
			wg.Go(func() {
				began := time.Now()
				_, err := db.query(port, "insert into seen select count(*) from pg_stat_activity where application_name = 'mesh'; select pg_sleep(3)")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					fine++
				} else {
					refused++
					if d := time.Since(began); d > 15*time.Second {
						t.Errorf("refused after %v", d)
					}
				}
			})
		}
		wg.Wait()
		seen, err := db.query(db.port, "select max(n) from seen")
		if n, _ := strconv.Atoi(seen); err != nil || n > most || n < 2 {
			t.Errorf("the database has seen %q connections at a time, %v", seen, err)
		}
		if fine < most || refused == 0 || callee.stat("cluster.up.upstream_cx_overflow") == 0 {
			t.Errorf("%d queries went through, %d did not, %d overflows", fine, refused, callee.stat("cluster.up.upstream_cx_overflow"))
		}
		eventually(t, 30*time.Second, "the access log tells of the overflow", func() bool { return strings.Contains(callee.accesses(), " UO ") })
	})

	t.Run("the database hangs", func(t *testing.T) {
		db.signal(syscall.SIGSTOP)
		defer db.signal(syscall.SIGCONT)
		// A client's own timeout holds: the cap's worth of them wait that long, the others not at all.
		var wg sync.WaitGroup
		for range 2 * most {
			wg.Go(func() {
				cmd := exec.Command(filepath.Join(db.bin, "psql"), "-X", "-c", "select 1")
				cmd.Env = append(db.env(port), "PGCONNECT_TIMEOUT=2")
				began := time.Now()
				if out, err := cmd.CombinedOutput(); err == nil || time.Since(began) > 15*time.Second {
					t.Errorf("after %v: %v %s", time.Since(began), err, out)
				}
			})
		}
		wg.Wait()
		if n := callee.stat("cluster.up.upstream_cx_active"); n > most {
			t.Errorf("%d connections are open to the database", n)
		}
		db.signal(syscall.SIGCONT)
		eventually(t, 30*time.Second, "connections of clients that left are closed", func() bool {
			return callee.stat("cluster.up.upstream_cx_active") == 0 && caller.stat("cluster.up.upstream_cx_active") == 0
		})
		eventually(t, 30*time.Second, "queries work again", func() bool {
			out, err := db.query(port, "select 1")
			return err == nil && out == "1"
		})
	})

	t.Run("the proxy beside it hangs", func(t *testing.T) {
		callee.cmd.Process.Signal(syscall.SIGSTOP)
		defer callee.cmd.Process.Signal(syscall.SIGCONT)
		// The connect timeout, of 2 s, covers the TLS handshake.
		began := time.Now()
		out, err := db.query(port, "select 1")
		if d := time.Since(began); err == nil || d > 18*time.Second || d < time.Second {
			t.Errorf("after %v: %v %s", d, err, out)
		}
		callee.cmd.Process.Signal(syscall.SIGCONT)
		eventually(t, 30*time.Second, "queries work again", func() bool {
			out, err := db.query(port, "select 1")
			return err == nil && out == "1"
		})
	})
}

// TestServerFirstProtocolsAreNotDelayed connects to a service that speaks first, and waits for it without a word.
func TestServerFirstProtocolsAreNotDelayed(t *testing.T) {
	binary(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	greeting := []byte("220 mail.test ready\r\n")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c.Write(greeting)
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	port, _, _ := tcpMesh(t, portOf(l), 100)
	var fastest time.Duration
	for i := 0; i < 10 || fastest > 40*time.Millisecond && i < 200; i++ {
		began := time.Now()
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, len(greeting))
		if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, greeting) {
			t.Fatalf("%q %v", b, err)
		}
		if d := time.Since(began); i == 0 || d < fastest {
			fastest = d
		}
		io.WriteString(c, "quit")
		if _, err := io.ReadFull(c, b[:4]); err != nil || string(b[:4]) != "quit" {
			t.Errorf("%q %v", b[:4], err)
		}
		c.Close()
	}
	if fastest > 40*time.Millisecond {
		t.Errorf("the first byte took %v at best", fastest)
	} else {
		t.Logf("the first byte took %v", fastest)
	}
}
