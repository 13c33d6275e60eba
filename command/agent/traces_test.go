package agent

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// A spanCollector takes spans over TLS.
type spanCollector struct {
	*httptest.Server
	cert atomic.Pointer[tls.Certificate]

	mu     sync.Mutex
	bodies [][]byte
	spans  []string // name and attributes
}

func newSpanCollector(t *testing.T) *spanCollector {
	c := &spanCollector{}
	c.Server = httptest.NewUnstartedServer(c)
	c.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.Server.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.cert.Load(), nil }}
	c.Server.Listener = tls.NewListener(c.Server.Listener, c.Server.TLS)
	c.Start()
	t.Cleanup(c.Close)
	return c
}

func (c *spanCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var m tracev1.TracesData
	if err := proto.Unmarshal(body, &m); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bodies = append(c.bodies, body)
	for _, rs := range m.ResourceSpans {
		var of []string
		for _, a := range rs.Resource.Attributes {
			of = append(of, a.Key+"="+a.Value.GetStringValue())
		}
		for _, s := range rs.ScopeSpans[0].Spans {
			text := fmt.Sprintf("%s %x %v", s.Name, s.TraceId, s.Status.GetCode())
			for _, a := range s.Attributes {
				text += fmt.Sprintf(" %s=%s%d", a.Key, a.Value.GetStringValue(), a.Value.GetIntValue())
			}
			c.spans = append(c.spans, text+" "+strings.Join(of, " "))
		}
	}
}

// find returns the spans that begin with a text.
func (c *spanCollector) find(beginning string) (found []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if strings.HasPrefix(s, beginning) {
			found = append(found, s)
		}
	}
	return found
}

// An agent sends what it traces to the collector that is configured, and no secret with it. A reload turns it on and off, and
// takes the authorities of the collector that are in the file by then.
func TestAgentSendsTraces(t *testing.T) {
	c := newSpanCollector(t)
	one, two := testkit.NewCA(t, "one"), testkit.NewCA(t, "two")
	file := filepath.Join(t.TempDir(), "ca.pem")
	vouch := func(ca *testkit.CA) {
		c.cert.Store(ca.Issue("127.0.0.1"))
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vouch(one)
	settings := func(traces bool) string {
		return fmt.Sprintf(`telemetry { otlp { endpoint = "https://%s" headers = { Authorization = "Bearer collector-secret" } ca_file = %q
			metrics = false traces = %v trace_sampling = 1 } }`, c.Listener.Addr(), file, traces)
	}
	g := runServer(t, settings(false))
	base := slices.Clone(g.sources.Fragments[:len(g.sources.Fragments)-1])
	reload := func(traces bool) {
		t.Helper()
		g.sources.Fragments = append(slices.Clone(base), settings(traces))
		if err := g.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if g.traces.Tracer.On() {
		t.Error("traces are on")
	}
	// arrived makes so many requests that spans are sent at once, and waits for one.
	arrived := func(beginning string) string {
		t.Helper()
		g.eventually(beginning+" has arrived", func() bool {
			for range 100 {
				g.do("GET", "/v1/status/leader", "", "")
			}
			return len(c.find(beginning)) > 0
		})
		return c.find(beginning)[0]
	}

	reload(true)
	if code, body := g.do("PUT", "/v1/kv/the-key?flags=77123&token="+managementSecret, managementSecret, "the-value"); code != 200 {
		t.Fatal(code, body)
	}
	g.do("GET", "/v1/kv/the-key?token="+unknownSecret, "", "")
	g.do("PUT", "/v1/acl/login", "", `{"AuthMethod": "the-method", "BearerToken": "the-bearer"}`)
	from := "1f7651916cd43dd8448eb211c80319c1"
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", g.current().Ports.GRPC), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+from+"-b7ad6b7169203331-01", "x-consul-token", managementSecret)
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	question := new(mdns.Msg).SetQuestion("nobody.service.consul.", mdns.TypeSRV)
	if _, _, err := (&mdns.Client{Timeout: 20 * time.Second}).Exchange(question, net.JoinHostPort("127.0.0.1", fmt.Sprint(g.current().Ports.DNS))); err != nil {
		t.Fatal(err)
	}

	put := arrived("PUT /v1/kv/* ")
	for _, want := range []string{
		"http.request.method=PUT", "http.route=/v1/kv/*", "http.response.status_code=200", "url.scheme=http", "client.address=127.0.0.1",
		"service.name=sarn", "service.version=", "service.instance.id=own-node", "host.name=", "sarn.datacenter=dc1", "sarn.server=true",
	} {
		if !strings.Contains(put, want) {
			t.Errorf("no %s in %s", want, put)
		}
	}
	for beginning, want := range map[string]string{
		"raft apply ": "sarn.raft.commands=", "fsm apply ": "", "GET /v1/kv/* ": "http.response.status_code=403",
		"grpc.health.v1.Health/Check " + from: "rpc.system=grpc0 rpc.service=grpc.health.v1.Health0 rpc.method=Check0 rpc.grpc.status_code=0",
		"DNS SRV ":                            "dns.question.name=nobody.service.consul.0 network.transport=udp0 dns.response.code=NXDOMAIN0",
	} {
		if s := arrived(beginning); !strings.Contains(s, want) {
			t.Errorf("no %s in %s", want, s)
		}
	}

	// The collector's certificate is of another authority now, which the file tells.
	vouch(two)
	c.CloseClientConnections()
	reload(true)
	g.must("DELETE", "/v1/kv/the-key", "")
	arrived("DELETE /v1/kv/* ")

	reload(false)
	if g.traces.Tracer.On() {
		t.Error("traces are still on")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, secret := range []string{managementSecret, unknownSecret, agentSecret, "the-key", "the-value", "77123", "the-bearer", "the-method", "collector-secret", gossipKey} {
		for _, body := range c.bodies {
			if bytes.Contains(body, []byte(secret)) {
				t.Errorf("%s is in what was sent", secret)
			}
		}
	}
}

// A file of authorities that cannot be used is refused, with its key, and changes nothing.
func TestBadCollectorIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	write(t, file, "nothing")
	for hcl, want := range map[string]string{
		fmt.Sprintf(`endpoint = "https://h" metrics = false traces = true ca_file = %q`, file): "telemetry.otlp.ca_file: no certificate in",
		`endpoint = "https://h" metrics = false traces = true ca_file = "/nonexistent"`:        "telemetry.otlp.ca_file: open /nonexistent",
	} {
		s := load(t, sources("telemetry { otlp { "+hcl+" } }"))
		if _, err := newTraces(s, dialOut, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", hcl, err, want)
		}
	}
}
