//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
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

// A patroni is one node of a PostgreSQL cluster: Patroni, the server it runs, and the agent beside it.
type patroni struct {
	*process
	t     *testing.T
	name  string
	bin   string // of PostgreSQL
	dir   string
	as    []string // makes a command run as a user that PostgreSQL accepts
	agent *agent
	port  int // of PostgreSQL
	rest  int // of Patroni
}

// The TTL is the least Patroni has for Consul: sessions last twice their TTL, of which the least is ten seconds.
const patroniTTL = 20 * time.Second

func newPatroni(t *testing.T, name string, agent *agent) *patroni {
	t.Helper()
	ports := freePorts(2)
	n := &patroni{t: t, name: name, bin: tool(t, "postgresql"), agent: agent, port: ports[0], rest: ports[1]}
	var err error
	if n.dir, err = os.MkdirTemp("", "sarn-patroni-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(n.dir) })
	role := map[string]any{"username": "postgres"}
	config, err := json.MarshalIndent(map[string]any{
		"scope": "orders", "name": name,
		"restapi": map[string]any{"listen": fmt.Sprintf("127.0.0.1:%d", n.rest), "connect_address": fmt.Sprintf("127.0.0.1:%d", n.rest)},
		"consul": map[string]any{
			"host": fmt.Sprintf("127.0.0.1:%d", agent.ports["http"]), "register_service": true, "service_check_interval": "1s",
		},
		"bootstrap": map[string]any{
			"dcs": map[string]any{
				"ttl": int(patroniTTL.Seconds()), "loop_wait": 1, "retry_timeout": 9, "synchronous_mode": true,
				"postgresql": map[string]any{"use_pg_rewind": true, "parameters": map[string]any{"wal_log_hints": "on"}},
			},
			"initdb": []any{"no-sync", map[string]any{"encoding": "UTF8"}, map[string]any{"locale": "C"}, map[string]any{"auth": "trust"}},
		},
		"postgresql": map[string]any{
			"listen": fmt.Sprintf("127.0.0.1:%d", n.port), "connect_address": fmt.Sprintf("127.0.0.1:%d", n.port),
			"data_dir": filepath.Join(n.dir, "data"), "bin_dir": n.bin, "pgpass": filepath.Join(n.dir, "pgpass"),
			"basebackup":     []any{map[string]any{"checkpoint": "fast"}},
			"authentication": map[string]any{"superuser": role, "replication": role, "rewind": role},
			"pg_hba":         []any{"host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust", "local all all trust"},
			"parameters":     map[string]any{"unix_socket_directories": n.dir, "fsync": "off", "shared_buffers": "16MB"},
		},
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "patroni.yml"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(n.dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		n.as = []string{"setpriv", "--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups"}
	}
	return n
}

func (n *patroni) run() {
	n.t.Helper()
	argv := append(append([]string{"env", "-C", n.dir}, n.as...), tool(n.t, "patroni"), filepath.Join(n.dir, "patroni.yml"))
	n.process = start(n.t, n.name, nil, argv...)
	p := n.process
	n.t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		n.killPostgres()
	})
}

// killPostgres kills the PostgreSQL server, if there is one.
func (n *patroni) killPostgres() {
	data, _ := os.ReadFile(filepath.Join(n.dir, "data", "postmaster.pid"))
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	// The number of one that ended may be another's by now.
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(line), n.dir) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// kill ends Patroni and PostgreSQL as a power cut does.
func (n *patroni) kill() {
	n.process.cmd.Process.Kill()
	<-n.process.done
	n.killPostgres()
}

// status is what Patroni says of its node.
func (n *patroni) status() (s struct {
	State, Role string
	Timeline    int
	DCSLastSeen int64 `json:"dcs_last_seen"`
}) {
	_, body, _ := request("GET", fmt.Sprintf("http://127.0.0.1:%d/patroni", n.rest), "")
	json.Unmarshal([]byte(body), &s)
	return s
}

func (n *patroni) primary() bool {
	s := n.status()
	return s.State == "running" && (s.Role == "master" || s.Role == "primary")
}

// sql runs a statement as a client does that gives up after some seconds.
func (n *patroni) sql(statement string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "psql"), "-X", "-A", "-t", "-q", "-c", statement)
	cmd.Env = append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(n.port), "PGUSER=postgres", "PGDATABASE=postgres", "PGCONNECT_TIMEOUT=5")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// A ledger inserts numbers one after another and remembers those that were acknowledged.
type ledger struct {
	mu     sync.Mutex
	acked  []int
	failed int
}

func (l *ledger) run(ctx context.Context, to *patroni, from int) {
	for i := from; ctx.Err() == nil; i++ {
		_, err := to.sql(fmt.Sprintf("insert into ledger values (%d)", i))
		l.mu.Lock()
		if err == nil {
			l.acked = append(l.acked, i)
		} else {
			l.failed++
		}
		l.mu.Unlock()
		if err != nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (l *ledger) counts() (acked, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked), l.failed
}

// TestPatroniKeepsPostgreSQLAvailable runs two PostgreSQL servers by Patroni, whose lock and state are with three servers:
// the loss of their leader is none of PostgreSQL's business; the loss of the primary makes the other one primary, with
// every row that was acknowledged; the lost one comes back as its replica.
func TestPatroniKeepsPostgreSQLAvailable(t *testing.T) {
	binary(t)
	tool(t, "patroni")
	list := servers(t, 3)
	nodes := map[string]*patroni{}
	for _, name := range []string{"pg1", "pg2"} {
		a := newAgent(t, name, map[string]any{"retry_join": []string{list[0].lan(), list[1].lan(), list[2].lan()}})
		a.run(t)
		eventually(t, 30*time.Second, "the agent knows a leader", func() bool { return a.leader() != "" })
		nodes[name] = newPatroni(t, name, a)
	}
	primary, replica := nodes["pg1"], nodes["pg2"]
	primary.run()
	eventually(t, 60*time.Second, "a primary", primary.primary)
	replica.run()
	// Patroni writes down the synchronous replica once it streams.
	synchronous := func(name string) func() bool {
		return func() bool {
			var sync struct{ Sync string }
			_, body, _ := list[2].call("GET", "/v1/kv/service/orders/sync?raw", "")
			var kept map[string]string
			json.Unmarshal([]byte(body), &kept)
			sync.Sync = kept["sync_standby"]
			return sync.Sync == name
		}
	}
	eventually(t, 90*time.Second, "the replica is synchronous", synchronous("pg2"))
	if out, err := primary.sql("create table ledger (n int)"); err != nil {
		t.Fatal(out)
	}
	// What Patroni registers is found by role over HTTP and DNS.
	is := func(a *agent, role string, n *patroni) func() bool {
		return func() bool {
			list, _ := a.get("/v1/health/service/orders?passing&tag=" + role).([]any)
			if len(list) != 1 {
				return false
			}
			service := list[0].(map[string]any)["Service"].(map[string]any)
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "udp", fmt.Sprintf("127.0.0.1:%d", a.ports["dns"]))
			}}
			_, records, err := r.LookupSRV(t.Context(), "", "", role+".orders.service.consul.")
			return service["Port"] == float64(n.port) && err == nil && len(records) == 1 && int(records[0].Port) == n.port
		}
	}
	eventually(t, 30*time.Second, "the primary is registered as such", is(replica.agent, "primary", primary))
	eventually(t, 30*time.Second, "the replica is registered as such", is(primary.agent, "replica", replica))

	timeline := primary.status().Timeline
	var rows ledger
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	writers.Go(func() { rows.run(ctx, primary, 0) })
	eventually(t, 20*time.Second, "rows are written", func() bool { n, _ := rows.counts(); return n >= 5 })

	// The loss of the servers' leader. Patroni has renewed its session and lock since when more than its TTL has passed.
	lost := leaderOf(t, list)
	lost.process.end(syscall.SIGKILL)
	at := time.Now()
	eventually(t, patroniTTL+60*time.Second, "Patroni goes on with another leader", func() bool {
		return primary.status().DCSLastSeen > at.Add(patroniTTL).Unix()+1
	})
	if s := primary.status(); !primary.primary() || s.Timeline != timeline || replica.primary() {
		t.Errorf("the loss of a leader changed %+v", s)
	}
	if acked, failed := rows.counts(); failed != 0 {
		t.Errorf("of %d rows %d failed while the leader changed", acked, failed)
	}
	lost.run(t)
	eventually(t, 30*time.Second, "the server is back", func() bool { return lost.leader() != "" })
	eventually(t, 30*time.Second, "the replica is synchronous", synchronous("pg2"))

	// The loss of the primary.
	before, _ := rows.counts()
	primary.kill()
	began := time.Now()
	stop()
	writers.Wait()
	eventually(t, 2*patroniTTL+60*time.Second, "the replica is primary", func() bool {
		_, err := replica.sql("insert into ledger values (-1)")
		return err == nil
	})
	took := time.Since(began)
	t.Logf("PostgreSQL took writes again after %v", took.Round(100*time.Millisecond))
	if s := replica.status(); s.Timeline <= timeline {
		t.Errorf("the new primary has timeline %d, the old one had %d", s.Timeline, timeline)
	}
	out, err := replica.sql("select string_agg(n::text, ' ') from ledger")
	if err != nil {
		t.Fatal(out)
	}
	has := map[string]bool{}
	for _, n := range strings.Fields(out) {
		has[n] = true
	}
	for _, n := range rows.acked {
		if !has[strconv.Itoa(n)] {
			t.Errorf("row %d was acknowledged and is lost", n)
		}
	}
	if len(rows.acked) < before {
		t.Errorf("%d rows, %d before", len(rows.acked), before)
	}
	eventually(t, 30*time.Second, "the new primary is registered as such", is(list[0], "primary", replica))

	primary.run()
	eventually(t, 90*time.Second, "the lost one replicates", synchronous("pg1"))
	if out, err := replica.sql("insert into ledger values (-2)"); err != nil {
		t.Fatal(out)
	}
	eventually(t, 30*time.Second, "it has what was written meanwhile", func() bool {
		out, err := primary.sql("select count(*) from ledger where n < 0")
		return err == nil && out == "2"
	})
	eventually(t, 30*time.Second, "it is registered as a replica", is(list[1], "replica", primary))
}
