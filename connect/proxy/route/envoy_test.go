package route_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

var envoy = flag.String("envoy", "", "path of an Envoy to ask anew what testdata/envoy.txt has")

// An asked is a request with what came of it.
type asked struct {
	line   string   // "GET exact.com /path"
	header []string // "name: value"
	answer string
}

func (a asked) String() string {
	return strings.Join(append([]string{a.line}, a.header...), " | ") + " => " + a.answer
}

// TestRoutesAsEnvoyDoes compares what becomes of requests with what was seen at Envoy 1.40: status, location, the
// request that a host gets, and the headers that were added to the response.
func TestRoutesAsEnvoyDoes(t *testing.T) {
	y, err := os.ReadFile("testdata/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(y, &v); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if *envoy != "" {
		askEnvoy(t, *envoy, j)
	}
	m := new(routev3.RouteConfiguration)
	if err := protojson.Unmarshal(j, m); err != nil {
		t.Fatal(err)
	}
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := decode.New(decode.Options{}).RouteConfig(a)
	if err != nil {
		t.Fatal(err)
	}
	table := compile(t, conf)
	text, err := os.ReadFile("testdata/envoy.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		req, want, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " => ")
		if !ok {
			t.Fatalf("no answer in %q", line)
		}
		parts := strings.Split(req, " | ")
		c := asked{line: parts[0], header: parts[1:]}
		if got := strings.TrimSpace(answer(table, c)); got != want {
			t.Errorf("%s\n got  %s\n want %s", req, got, want)
		}
		n++
	}
	if n < 500 {
		t.Errorf("only %d requests", n)
	}
}

// answer tells what becomes of a request.
func answer(table *route.Table, c asked) string {
	f := strings.Split(c.line, " ")
	r := request(f[0]+" http://"+f[1]+f[2], c.header...)
	if !r.Header.Has("x-forwarded-proto") {
		r.Header.Add("x-forwarded-proto", "http")
	}
	r.Scheme = r.Header.Get("x-forwarded-proto")
	m := table.Match(&route.Facts{Request: r, SourceIP: netip.MustParseAddr("127.0.0.1")})
	resp := &message.Response{}
	m.EditResponse(resp, &accesslog.Entry{})
	added := " " + fields(&resp.Header)
	switch {
	case m.TLSRedirect:
		return "301 " + m.Location(r, false) + added
	case m.Route == nil:
		return "404" + added
	case m.Route.Direct != nil:
		return fmt.Sprint(m.Route.Direct.Status, " ", m.Route.Direct.Body, added)
	case m.Route.Redirect != nil:
		return fmt.Sprint(m.Route.Redirect.Status, " ", m.Location(r, false), added)
	case m.Cluster != "up":
		return fmt.Sprint(m.Route.Forward.NotFoundStatus, added)
	}
	m.EditRequest(r, &accesslog.Entry{})
	m.Rewrite(r, "")
	var header []string
	for i := range r.Header.Len() {
		header = append(header, r.Header.At(i).Name+": "+r.Header.At(i).Value)
	}
	return fmt.Sprint("200 ", seen(r.Authority, r.Path, header), added)
}

// seen shows what a host sees of a request.
func seen(host, path string, header []string) string {
	out := []string{host + path}
	name := func(h string) string { n, _, _ := strings.Cut(h, ":"); return n }
	header = slices.DeleteFunc(slices.Clone(header), func(h string) bool {
		n := name(h)
		return !strings.HasPrefix(n, "x-t-") && n != "x-envoy-original-path" && n != "x-forwarded-host"
	})
	slices.SortStableFunc(header, func(a, b string) int { return strings.Compare(name(a), name(b)) })
	return strings.Join(append(out, header...), ";")
}

// askEnvoy writes testdata/envoy.txt anew.
func askEnvoy(t *testing.T, path string, table []byte) {
	up, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	go serveSeen(up)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().(*net.TCPAddr)
	free.Close()
	conf := fmt.Sprintf(`{"static_resources":{
		"listeners":[{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":%d}},"filter_chains":[{"filters":[{"name":"h","typed_config":{
			"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"p","route_config":%s,
			"http_filters":[{"name":"r","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}],
		"clusters":[{"name":"up","load_assignment":{"cluster_name":"up","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":%d}}}}]}]}}]}}`,
		addr.Port, table, up.Addr().(*net.TCPAddr).Port)
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-c", file, "--concurrency", "1", "-l", "error", "--disable-hot-restart")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var conn net.Conn
	for range 100 {
		if conn, err = net.Dial("tcp", addr.String()); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	br := bufio.NewReader(conn)
	rnd := rand.New(rand.NewPCG(1, 2))
	var out bytes.Buffer
	for range 900 {
		c := someQuestion(rnd)
		f := strings.Split(c.line, " ")
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nhost: %s\r\ncontent-length: 0\r\n", f[0], f[2], f[1])
		for _, h := range c.header {
			io.WriteString(conn, h+"\r\n")
		}
		io.WriteString(conn, "\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		var added message.Header
		for _, v := range resp.Header.Values("x-t-order") {
			added.Add("x-t-order", v)
		}
		c.answer = fmt.Sprint(resp.StatusCode)
		if s := resp.Header.Get("location") + string(body); s != "" {
			c.answer += " " + s
		}
		c.answer = strings.TrimSpace(c.answer + " " + fields(&added))
		fmt.Fprintln(&out, c)
	}
	if err := os.WriteFile("testdata/envoy.txt", out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// serveSeen answers requests with what it sees of them.
func serveSeen(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			br := bufio.NewReader(conn)
			for {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				var header []string
				host := ""
				for {
					h, err := br.ReadString('\n')
					if err != nil {
						return
					}
					if h = strings.TrimSpace(h); h == "" {
						break
					}
					k, v, _ := strings.Cut(h, ":")
					if k == "host" {
						host = strings.TrimSpace(v)
					}
					header = append(header, k+": "+strings.TrimSpace(v))
				}
				s := seen(host, strings.Fields(line)[1], header)
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(s), s)
			}
		}()
	}
}

// someQuestion makes a request that says something to the table.
func someQuestion(rnd *rand.Rand) asked {
	host := pick(rnd, "exact.com", "exact.com", "exact.com", "exact.com", "EXACT.com:8080", "exact.com:80", "exact.com:99", "a.foo.com", "a-bar.foo.com",
		"b.x.foo.com", ".foo.com", "-bar.foo.com", "foo.com", "foo.com.au", "foo.", "none", "tls.com", "tls.com:8080")
	path := pick(rnd, "/hash2", "/hash3", "/hash4", "/edit/x", "/wh", "/acts", "/pre/a/b", "/pre/", "/prefa", "/pref", "/exact", "/exactly", "/re/x", "/sep", "/sep/a",
		"/sepa", "/CASE/x", "/case", "/rx/a/x/b/x", "/rx", "/h1", "/h2/abc/d", "/h3", "/ch", "/r1/a", "/r2/a", "/r3/a", "/r4/a", "/r5/a/b", "/r5", "/r6", "/r7/x",
		"/m", "/m", "/m", "/m", "/m", "/m", "/m", "/m", "/q", "/q", "/q", "/q", "/c", "/c", "/g", "/other")
	path += pick(rnd, "", "", "?", "?a=1", "?a=2&a=1", "?b", "?b=", "?c=1&d=2", "?d", "?e", "?e=", "?a=1/x&b=/pre", "?&&d=1", "?=1", "?x?y=1")
	c := asked{line: pick(rnd, "PUT", "POST") + " " + host + " " + path}
	once := map[string]bool{}
	for range rnd.IntN(5) {
		name := pick(rnd, "x-t-a", "x-t-b", "x-t-c", "x-t-n", "x-t-m", "x-t-m", "x-t-m", "x-t-o", "x-t-p", "x-t-q", "x-t-r", "x-h", "x-forwarded-host", "x-c", "cookie",
			"content-type", "x-forwarded-proto")
		value := ""
		switch name {
		case "cookie":
			value = pick(rnd, "a=1", "a=2", "b=1; a=1", "a", `a="1"`, "a=1;a=2")
		case "content-type":
			value = pick(rnd, "application/grpc-web", "text/plain") // replies to gRPC look otherwise
		case "x-forwarded-proto":
			value = pick(rnd, "http", "https")
		case "x-forwarded-host":
			value = pick(rnd, "hh", "exact.com", "a,exact.com")
		case "x-c":
			value = pick(rnd, "up", "up", "nope")
		case "x-h":
			value = pick(rnd, "hh", "hh:80")
		default:
			value = pick(rnd, "a", "b", "3", "5", "-5", "", "zz", "a,b", "4x")
		}
		if !once[name] || strings.HasPrefix(name, "x-t-") {
			c.header = append(c.header, name+": "+value)
		}
		once[name] = true
	}
	return c
}
