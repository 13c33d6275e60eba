//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A machine is a network namespace with an address, on a network that has no way out.
type machine struct {
	t    testing.TB
	name string
	addr string
}

// Users of the programs on a machine. The agents are root.
const (
	proxyUser = "4001"
	appUser   = "4002"
)

// machines makes namespaces that reach each other. The first is also the router of the others, and is nobody's host.
func machines(t *testing.T, names ...string) []*machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces, which needs root")
	}
	for _, tool := range []string{"ip", "nft", "setpriv", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	id := strconv.Itoa(os.Getpid())
	must := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var all []*machine
	for i, name := range names {
		m := &machine{t: t, name: "sarn-" + name + "-" + id, addr: fmt.Sprintf("10.213.77.%d", i+1)}
		must("netns", "add", m.name)
		t.Cleanup(func() {
			exec.Command("ip", "netns", "delete", m.name).Run()
			os.RemoveAll(filepath.Join("/etc/netns", m.name))
		})
		must("-n", m.name, "link", "set", "lo", "up")
		all = append(all, m)
	}
	router := all[0]
	must("-n", router.name, "link", "add", "br0", "type", "bridge")
	must("-n", router.name, "address", "add", router.addr+"/24", "dev", "br0")
	must("-n", router.name, "link", "set", "br0", "up")
	for i, m := range all[1:] {
		end := fmt.Sprintf("v%d", i)
		must("-n", m.name, "link", "add", "eth0", "type", "veth", "peer", "name", end, "netns", router.name)
		must("-n", m.name, "address", "add", m.addr+"/24", "dev", "eth0")
		must("-n", m.name, "link", "set", "eth0", "up")
		must("-n", router.name, "link", "set", end, "master", "br0", "up")
		must("-n", m.name, "route", "add", "default", "via", router.addr)
		// A name server that does not answer: whoever gets an answer was redirected.
		dir := filepath.Join("/etc/netns", m.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+router.addr+"\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// argv is a command line that runs on the machine as a user, root if that is empty.
func (m *machine) argv(user string, args ...string) []string {
	out := []string{"ip", "netns", "exec", m.name}
	if user != "" {
		out = append(out, "setpriv", "--reuid", user, "--regid", user, "--clear-groups")
	}
	return append(out, args...)
}

// run runs a command and returns what it prints, and whether it succeeded.
func (m *machine) run(user string, args ...string) (string, bool) {
	argv := m.argv(user, args...)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err == nil
}

func (m *machine) must(user string, args ...string) string {
	m.t.Helper()
	out, ok := m.run(user, args...)
	if !ok {
		m.t.Fatalf("%s: %s\n%s", m.name, strings.Join(args, " "), out)
	}
	return out
}

// call asks a URL as an application does, and returns the body of the answer or what went wrong.
func (m *machine) call(user, url string) string {
	out, _ := m.run(user, "curl", "-sS", "--max-time", "10", url)
	return out
}

// serve makes the test's own process answer at a port of the machine, with the name, the client's address and who it
// says it is.
func (m *machine) serve(port int, name string) {
	m.t.Helper()
	made := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := os.Open(filepath.Join("/var/run/netns", m.name))
		if err != nil {
			m.t.Error(err)
			close(made)
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			m.t.Error(err)
			close(made)
			return
		}
		ln, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			m.t.Error(err)
			close(made)
			return
		}
		made <- ln
	}()
	ln := <-made
	if ln == nil {
		m.t.FailNow()
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s for %s %s", name, host, r.Header.Get("x-forwarded-client-cert"))
	})}
	go srv.Serve(ln)
	m.t.Cleanup(func() { srv.Close() })
}

// publicBinary returns the binary under test where other users may run it.
func publicBinary(t *testing.T) string {
	t.Helper()
	from, err := os.Open(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	dir, err := os.MkdirTemp("", "sarn-capture-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sarn")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTransparentProxy lets an application call another by a plain name, with both machines' traffic redirected through
// their sidecars, and tries to get around that.
func TestTransparentProxy(t *testing.T) {
	bin := publicBinary(t)
	for _, protocol := range []string{"tcp", "http"} {
		t.Run(protocol, func(t *testing.T) {
			all := machines(t, "out", "web", "shop")
			outside, web, shop := all[0], all[1], all[2]
			const app, free, public, admin = 8080, 8081, 20000, 19000
			web.serve(app, "web")
			web.serve(free, "free")
			shop.serve(app, "shop itself")
			outside.serve(9090, "outside")

			agents := map[*machine]*agent{}
			for _, m := range []*machine{web, shop} {
				name := "web"
				if m == shop {
					name = "shop"
				}
				settings := map[string]any{
					"bind_addr": m.addr, "client_addr": "127.0.0.1",
					"services": []any{map[string]any{"name": name, "port": app, "connect": map[string]any{
						"sidecar_service": map[string]any{"port": public, "proxy": map[string]any{"mode": "transparent"}},
					}}},
				}
				if m == web {
					settings["server"], settings["bootstrap"] = true, true
					settings["config_entries"] = map[string]any{"bootstrap": []any{
						map[string]any{"kind": "service-defaults", "name": "web", "protocol": protocol},
					}}
				} else {
					settings["retry_join"] = []string{web.addr + ":" + strconv.Itoa(agents[web].ports["serf_lan"])}
				}
				a := newAgent(t, name, settings)
				agents[m] = a
				a.process = start(t, name, nil, m.argv("", bin, "agent", "-config-file", a.conf)...)
			}
			env := func(m *machine, user string, args ...string) []string {
				a := agents[m]
				return m.argv(user, append([]string{"env", "CONSUL_HTTP_ADDR=127.0.0.1:" + strconv.Itoa(a.ports["http"]),
					"CONSUL_GRPC_ADDR=127.0.0.1:" + strconv.Itoa(a.ports["grpc"]), bin}, args...)...)
			}
			sarn := func(m *machine, args ...string) (string, bool) {
				argv := env(m, "", args...)
				out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
				return string(out), err == nil
			}
			for _, m := range []*machine{web, shop} {
				eventually(t, 30*time.Second, "the agents know each other", func() bool {
					out, ok := sarn(m, "catalog", "services")
					return ok && strings.Contains(out, "web-sidecar-proxy") && strings.Contains(out, "shop-sidecar-proxy")
				})
			}
			if out, ok := sarn(shop, "intention", "create", "-allow", "shop", "web"); !ok {
				t.Fatal(out)
			}
			for m, service := range map[*machine]string{web: "web", shop: "shop"} {
				start(t, service+"-sidecar", nil, env(m, proxyUser, "connect", "proxy", "-sidecar-for", service, "-admin-bind", "127.0.0.1:"+strconv.Itoa(admin))...)
			}
			appURL := fmt.Sprintf("http://%s:%d/", web.addr, app)
			if got := outside.call(appUser, appURL); !strings.HasPrefix(got, "web for "+outside.addr) {
				t.Fatalf("without redirection: %q", got)
			}

			redirect := func(m *machine, more ...string) {
				t.Helper()
				a := agents[m]
				args := []string{"connect", "redirect-traffic", "-proxy-id", map[*machine]string{web: "web", shop: "shop"}[m] + "-sidecar-proxy",
					"-proxy-uid", proxyUser, "-exclude-uid", "0", "-consul-dns-port", strconv.Itoa(a.ports["dns"])}
				for _, name := range []string{"server", "serf_lan", "grpc", "grpc_tls"} {
					args = append(args, "-exclude-inbound-port", strconv.Itoa(a.ports[name]))
				}
				if out, ok := sarn(m, append(args, more...)...); !ok || !strings.Contains(out, fmt.Sprintf("inbound to port %d, outbound to port 15001", public)) {
					t.Fatal(out)
				}
			}
			for range 2 { // once more changes nothing
				redirect(web, "-exclude-inbound-port", strconv.Itoa(free))
				redirect(shop, "-exclude-outbound-port", "9091")
			}
			const byName = "http://web.virtual.consul:8080/"
			arrives := func() bool {
				got := shop.call(appUser, byName)
				if protocol == "http" {
					return strings.HasPrefix(got, "web for 127.0.0.1 ") && strings.Contains(got, "/svc/shop")
				}
				return got == "web for 127.0.0.1 "
			}
			eventually(t, 30*time.Second, "shop reaches web by its name", func() bool { return arrives() })
			if out := shop.must(appUser, "curl", "-sS", "http://127.0.0.1:19000/stats?filter=ssl.handshake"); !strings.Contains(out, "web.default") {
				t.Errorf("shop's sidecar tells of no TLS with web: %s", out)
			}
			if out := web.must(appUser, "curl", "-sS", "http://127.0.0.1:19000/stats?filter=^listener.*ssl.handshake"); !strings.Contains(out, fmt.Sprintf("_%d.ssl.handshake: ", public)) {
				t.Errorf("web's sidecar tells of no TLS: %s", out)
			}

			// Who is not in the mesh, or goes around it, gets nothing.
			for name, got := range map[string]string{
				"from outside to the application":     outside.call(appUser, appURL),
				"from outside to the sidecar":         outside.call(appUser, fmt.Sprintf("http://%s:%d/", web.addr, public)),
				"from an application by the address":  shop.call(appUser, appURL),
				"around the own sidecar, as its user": shop.call(proxyUser, appURL),
			} {
				if strings.HasPrefix(got, "web") || !strings.Contains(got, "curl: (") {
					t.Errorf("%s: %q, want a connection that is closed", name, got)
				}
			}
			// What is left alone, and what is not in the mesh, is reached as ever.
			for name, c := range map[string]struct{ got, want string }{
				"an excluded port":      {outside.call(appUser, fmt.Sprintf("http://%s:%d/", web.addr, free)), "free for " + outside.addr},
				"loopback":              {shop.call(appUser, "http://127.0.0.1:8080/"), "shop itself for 127.0.0.1"},
				"outside of the mesh":   {shop.call(appUser, fmt.Sprintf("http://%s:9090/", outside.addr)), "outside for " + shop.addr},
				"an excluded user":      {shop.call("", fmt.Sprintf("http://%s:9090/", outside.addr)), "outside for " + shop.addr},
				"the own address":       {shop.call(appUser, fmt.Sprintf("http://%s:%d/", shop.addr, app)), "shop itself for " + shop.addr},
				"excluded on both ends": {shop.call("", fmt.Sprintf("http://%s:%d/", web.addr, free)), "free for " + shop.addr},
			} {
				if !strings.HasPrefix(c.got, c.want) {
					t.Errorf("%s: %q, want %q", name, c.got, c.want)
				}
			}
			// A connection to the outbound listener itself leads nowhere, and not round and round.
			if got := shop.call(appUser, "http://127.0.0.1:15001/"); !strings.Contains(got, "curl: (") {
				t.Errorf("the outbound listener itself: %q", got)
			}

			if out, ok := sarn(shop, "intention", "create", "-replace", "-deny", "shop", "web"); !ok {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "shop is denied", func() bool { return !strings.HasPrefix(shop.call(appUser, byName), "web for") })
			if out, ok := sarn(shop, "intention", "create", "-replace", "-allow", "shop", "web"); !ok {
				t.Fatal(out)
			}
			eventually(t, 30*time.Second, "shop is allowed again", arrives)

			if out, ok := sarn(web, "connect", "redirect-traffic", "-remove"); !ok {
				t.Fatal(out)
			}
			if got := outside.call(appUser, appURL); !strings.HasPrefix(got, "web for "+outside.addr) {
				t.Errorf("after removal: %q", got)
			}
			if out := web.must("", "nft", "list", "ruleset"); strings.Contains(out, "sarn") {
				t.Errorf("left behind: %s", out)
			}
		})
	}
}
