//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A crowd is some instances of a service, on one port of several addresses, that answer with their name.
type crowd struct {
	t       *testing.T
	agent   *agent
	port    int
	service string
}

// newCrowd starts n of them, named 1 to n; none is registered.
func newCrowd(t *testing.T, a *agent, service string, n int) *crowd {
	t.Helper()
	for range 20 {
		port := freePorts(1)[0]
		var listeners []net.Listener
		for i := range n {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.1.%d:%d", i+1, port))
			if err != nil {
				break
			}
			listeners = append(listeners, l)
		}
		if len(listeners) < n {
			for _, l := range listeners {
				l.Close()
			}
			continue
		}
		for i, l := range listeners {
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close") // for the next request to choose anew
				fmt.Fprint(w, i+1)
			})}
			go srv.Serve(l)
			t.Cleanup(func() { srv.Close() })
		}
		return &crowd{t, a, port, service}
	}
	t.Fatal("no port that is free on all addresses")
	return nil
}

func (c *crowd) id(i int) string { return fmt.Sprintf("%s-%d", c.service, i) }

// register registers instances, whose checks pass until they are told to fail.
func (c *crowd) register(instances ...int) {
	c.t.Helper()
	for _, i := range instances {
		body, _ := json.Marshal(map[string]any{
			"ID": c.id(i), "Name": c.service, "Address": fmt.Sprintf("127.0.1.%d", i), "Port": c.port, "Tags": []string{"v1", fmt.Sprintf("i%d", i)},
			"Meta":  map[string]string{"rack": fmt.Sprint(i)},
			"Check": map[string]string{"CheckID": c.id(i), "TTL": "10m", "Status": "passing"},
		})
		c.agent.must(c.t, "PUT", "/v1/agent/service/register", string(body))
	}
}

func (c *crowd) deregister(i int) {
	c.t.Helper()
	c.agent.must(c.t, "PUT", "/v1/agent/service/deregister/"+c.id(i), "")
}

func (c *crowd) check(i int, verdict string) {
	c.t.Helper()
	c.agent.must(c.t, "PUT", "/v1/agent/check/"+verdict+"/"+c.id(i), "")
}

// who asks a load balancer some times and returns who answered; an error counts as "error".
func who(url string, times int) map[string]bool {
	did := map[string]bool{}
	for range times {
		if code, body, err := request("GET", url, ""); err == nil && code == 200 {
			did[body] = true
		} else {
			did["error"] = true
		}
	}
	return did
}

// follows waits until requests to a load balancer reach exactly these instances.
func follows(t *testing.T, what, url string, instances ...int) {
	t.Helper()
	want := map[string]bool{}
	for _, i := range instances {
		want[fmt.Sprint(i)] = true
	}
	var got map[string]bool
	deadline := time.Now().Add(30 * time.Second)
	for got = who(url, 4*len(want)); !maps.Equal(got, want); got = who(url, 4*len(want)) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v answer, want %v", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// single starts a server that is a cluster by itself.
func single(t *testing.T, more map[string]any) *agent {
	t.Helper()
	settings := map[string]any{"server": true, "bootstrap": true}
	maps.Copy(settings, more)
	a := newAgent(t, "one", settings)
	a.run(t)
	eventually(t, 30*time.Second, "the node is registered", func() bool {
		list, _ := a.get("/v1/health/service/consul?passing").([]any)
		return len(list) == 1
	})
	return a
}

// writeConfig writes a configuration to a file that others may read: some programs give their rights up before they do.
func writeConfig(t *testing.T, name, text string) (dir, path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sarn-client-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, path
}

// TestHAProxyFollowsSRVRecords has HAProxy fill its servers from SRV records: ports and addresses, more of them than fit
// in 512 bytes.
func TestHAProxyFollowsSRVRecords(t *testing.T) {
	binary(t)
	haproxy := tool(t, "haproxy")
	a := single(t, nil)
	c := newCrowd(t, a, "web", 12)
	front := freePorts(1)[0]
	_, config := writeConfig(t, "haproxy.cfg", fmt.Sprintf(`
global
  maxconn 200
resolvers sarn
  nameserver agent 127.0.0.1:%d
  accepted_payload_size 8192
  resolve_retries 3
  timeout resolve 200ms
  timeout retry 200ms
  hold valid 200ms
  hold obsolete 200ms
  hold nx 200ms
  hold timeout 10s
defaults
  mode http
  timeout connect 2s
  timeout client 10s
  timeout server 10s
frontend front
  bind 127.0.0.1:%d
  default_backend web
backend web
  balance roundrobin
  option http-server-close
  server-template web 20 _web._tcp.service.consul resolvers sarn resolve-prefer ipv4 init-addr none
`, a.ports["dns"], front))
	start(t, "haproxy", nil, haproxy, "-db", "-f", config)
	url := fmt.Sprintf("http://127.0.0.1:%d/", front)
	eventually(t, 20*time.Second, "HAProxy has no server yet", func() bool { code, _, _ := request("GET", url, ""); return code == 503 })
	c.register(1, 2)
	follows(t, "two are registered", url, 1, 2)
	c.register(3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	follows(t, "twelve are registered", url, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	for i := 4; i <= 12; i++ {
		c.deregister(i)
	}
	follows(t, "nine are deregistered", url, 1, 2, 3)
	c.check(2, "fail")
	follows(t, "one is critical", url, 1, 3)
	c.check(2, "pass")
	follows(t, "it passes again", url, 1, 2, 3)
}

// TestNginxFollowsAddresses has nginx look the addresses of a service up, as its free editions before 1.27.3 can: they
// know no SRV records.
func TestNginxFollowsAddresses(t *testing.T) {
	binary(t)
	nginx := tool(t, "nginx")
	a := single(t, nil)
	c := newCrowd(t, a, "web", 8)
	front := freePorts(1)[0]
	dir, config := writeConfig(t, "nginx.conf", fmt.Sprintf(`
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events { worker_connections 100; }
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  resolver 127.0.0.1:%d valid=1s ipv6=off;
  resolver_timeout 5s;
  server {
    listen 127.0.0.1:%d;
    location / {
      set $web web.service.consul;
      proxy_pass http://$web:%d;
    }
  }
}
`, a.ports["dns"], front, c.port))
	start(t, "nginx", nil, nginx, "-p", dir, "-c", config, "-e", "stderr")
	url := fmt.Sprintf("http://127.0.0.1:%d/", front)
	eventually(t, 20*time.Second, "nginx says that the name is not there", func() bool { code, _, _ := request("GET", url, ""); return code == 502 })
	c.register(1)
	follows(t, "one is registered", url, 1)
	c.register(2, 3)
	follows(t, "three are registered", url, 1, 2, 3)
	c.deregister(1)
	follows(t, "one is deregistered", url, 2, 3)
	c.check(3, "fail")
	follows(t, "one is critical", url, 2)
	c.check(3, "pass")
	follows(t, "it passes again", url, 2, 3)
}

// TestDnsmasqForwards has dnsmasq forward the domain, with its cache on: what it answers changes with the instances at
// once, names that were not there among it, and what is too large for UDP comes over TCP.
func TestDnsmasqForwards(t *testing.T) {
	binary(t)
	dnsmasq := tool(t, "dnsmasq")
	a := single(t, map[string]any{"dns_config": map[string]any{"enable_truncate": true}})
	c := newCrowd(t, a, "web", 40)
	port := freePorts(1)[0]
	p := start(t, "dnsmasq", nil, dnsmasq, "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=", "--no-hosts", "--no-resolv", "--no-poll",
		"--log-queries", "--log-facility=-", "--cache-size=1000", "--listen-address=127.0.0.1", "--bind-interfaces", fmt.Sprintf("--port=%d", port),
		fmt.Sprintf("--server=/consul/127.0.0.1#%d", a.ports["dns"]), fmt.Sprintf("--rev-server=127.0.0.0/8,127.0.0.1#%d", a.ports["dns"]))
	t.Cleanup(func() { p.end(syscall.SIGTERM) })
	// Go's resolver asks again over TCP when an answer was cut.
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, strings.TrimRight(network, "46"), fmt.Sprintf("127.0.0.1:%d", port))
	}}
	addresses := func(name string, want ...string) func() bool {
		return func() bool {
			got, err := resolver.LookupHost(t.Context(), name)
			slices.Sort(got)
			if len(want) == 0 {
				failure, ok := err.(*net.DNSError)
				return ok && failure.IsNotFound
			}
			return err == nil && slices.Equal(got, want)
		}
	}
	eventually(t, 20*time.Second, "a node has an address", addresses("one.node.consul.", "127.0.0.1"))
	eventually(t, 20*time.Second, "the service is not there", addresses("web.service.consul."))
	c.register(1, 2)
	eventually(t, 20*time.Second, "what was not there is there", addresses("web.service.consul.", "127.0.1.1", "127.0.1.2"))
	eventually(t, 20*time.Second, "a tag chooses one", addresses("i2.web.service.consul.", "127.0.1.2"))
	c.deregister(1)
	eventually(t, 20*time.Second, "one is left", addresses("web.service.consul.", "127.0.1.2"))
	c.check(2, "fail")
	eventually(t, 20*time.Second, "none is healthy", addresses("web.service.consul."))
	c.check(2, "pass")
	for i := 1; i <= 40; i++ {
		c.register(i)
	}
	srv := func() (ports map[uint16]int, targets int) {
		ports = map[uint16]int{}
		_, records, err := resolver.LookupSRV(t.Context(), "web", "tcp", "service.consul.")
		if err != nil {
			return nil, 0
		}
		seen := map[string]bool{}
		for _, r := range records {
			ports[r.Port]++
			seen[r.Target] = true
		}
		return ports, len(seen)
	}
	eventually(t, 30*time.Second, "forty SRV records come", func() bool {
		ports, targets := srv()
		return ports[uint16(c.port)] == 40 && targets == 40
	})
	names, err := resolver.LookupAddr(t.Context(), "127.0.1.7") // 127.0.0.1 is in /etc/hosts
	if err != nil || !slices.Equal(names, []string{"web.service.dc1.consul."}) {
		t.Errorf("127.0.1.7 is %v, %v", names, err)
	}
}
