package definition_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func mustService(t testing.TB, body string) *definition.Service {
	t.Helper()
	s, err := definition.DecodeService(strings.NewReader(body))
	if err != nil {
		t.Fatalf("DecodeService(%s): %v", body, err)
	}
	return s
}

func TestDecodeServiceAcceptsSpellings(t *testing.T) {
	want := &definition.Service{
		Name: "web", ID: "w1", Port: 80, EnableTagOverride: true, Tags: []string{"a"},
		TaggedAddresses: map[string]catalog.ServiceAddress{"lan": {Address: "10.0.0.2", Port: 4}},
		Weights:         &catalog.Weights{Passing: 2, Warning: 3},
		Check: definition.Check{ID: "c", ScriptArgs: []string{"x"}, TTL: time.Minute, TLSSkipVerify: true,
			DeregisterCriticalServiceAfter: time.Hour},
		Connect: &definition.Connect{SidecarService: &definition.Service{Proxy: &catalog.Proxy{
			LocalServicePort: 9, MeshGateway: catalog.MeshGateway{Mode: "local"},
			Config:           map[string]any{"n": 1.0, "l": []any{map[string]any{"x": "y"}}},
			Upstreams:        []catalog.Upstream{{DestinationName: "db", LocalBindPort: 1}},
			TransparentProxy: &catalog.TransparentProxy{OutboundListenerPort: 7},
		}}},
	}
	for name, body := range map[string]string{
		"camel case": `{"Name":"web","ID":"w1","Port":80,"EnableTagOverride":true,"Tags":["a"],"TaggedAddresses":{"lan":{"Address":"10.0.0.2","Port":4}},
			"Weights":{"Passing":2,"Warning":3},"Check":{"CheckID":"c","ScriptArgs":["x"],"TTL":"1m","TLSSkipVerify":true,"DeregisterCriticalServiceAfter":"1h","ServiceID":"ignored"},
			"Connect":{"SidecarService":{"Proxy":{"LocalServicePort":9,"MeshGateway":{"Mode":"local"},"Config":{"n":1,"l":[{"x":"y"}]},
			"Upstreams":[{"DestinationName":"db","LocalBindPort":1}],"TransparentProxy":{"OutboundListenerPort":7}}}}}`,
		"snake and lower case": `{"name":"web","id":"w1","port":80,"enable_tag_override":true,"tags":["a"],"tagged_addresses":{"lan":{"address":"10.0.0.2","port":4}},
			"weights":{"passing":2,"warning":3},"check":{"checkid":"c","args":["x"],"ttl":60000000000,"tls_skip_verify":true,"deregister_critical_service_after":"1h"},
			"connect":{"sidecar_service":{"proxy":{"local_service_port":9,"mesh_gateway":{"mode":"local"},"config":{"n":1,"l":[{"x":"y"}]},
			"upstreams":[{"destination_name":"db","local_bind_port":1}],"transparent_proxy":{"outboundlistenerport":7}}}}}`,
	} {
		if diff := cmp.Diff(want, mustService(t, body)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDecodeServiceErrors(t *testing.T) {
	for body, want := range map[string]string{
		``:                                     `EOF`,
		`{`:                                    `unexpected EOF`,
		`[]`:                                   `json: cannot unmarshal array into a definition`,
		`{"Bogus":1}`:                          `json: unknown field "Bogus"`,
		`{"socket_path":"/x"}`:                 `json: unknown field "socket_path"`,
		`{"Check":{"ID":"x"}}`:                 `json: unknown field "ID"`,
		`{"Check":{"check_id":"x"}}`:           `json: unknown field "check_id"`,
		`{"Check":{"disable_redirects":true}}`: `json: unknown field "disable_redirects"`,
		`{"Port":"80"}`:                        `json: cannot unmarshal string into field Port of type int`,
		`{"Port":80.5}`:                        `json: cannot unmarshal number 80.5 into field Port of type int`,
		`{"Tags":"x"}`:                         `json: cannot unmarshal string into field Tags of type []string`,
		`{"Meta":{"a":1}}`:                     `json: cannot unmarshal number 1 into field Meta.a of type string`,
		`{"Check":{"TTL":"bad"}}`:              `time: invalid duration "bad"`,
		`{"Check":{"TTL":1e19}}`:               `time: invalid duration "1e+19"`,
		`{"Check":{"Interval":-1e400}}`:        `time: invalid duration "-1e400"`,
		`{"Proxy":{"transparent_proxy":{"dialed_directly":true}}}`: `json: unknown field "dialed_directly"`,
		`{"Namespace":"x"}`: `json: unknown field "Namespace"`,
	} {
		_, err := definition.DecodeService(strings.NewReader(body))
		if err == nil || err.Error() != want {
			t.Errorf("DecodeService(%s) = %v, want %s", body, err, want)
		}
	}
}

func TestDecodeReadsOnlyTheFirstValue(t *testing.T) {
	if s := mustService(t, `{"Name":"web"} trailing`); s.Name != "web" {
		t.Errorf("name %q", s.Name)
	}
	if s := mustService(t, `null`); s.Name != "" {
		t.Errorf("null decoded to %v", s)
	}
}

func TestDecodeCheck(t *testing.T) {
	for body, want := range map[string]*definition.Check{
		`{"id":"s","service_id":"web","ttl":"1s"}`:                 {ID: "s", ServiceID: "web", TTL: time.Second},
		`{"H2PING":"a:1","Interval":"1s"}`:                         {H2PING: "a:1", H2PingUseTLS: true, Interval: time.Second},
		`{"h2ping":"a:1","h2ping_use_tls":false,"Interval":"1s"}`:  {H2PING: "a:1", Interval: time.Second},
		`{"H2PingUseTLS":false,"H2PING":"a:1","Interval":"1s"}`:    {H2PING: "a:1", Interval: time.Second},
		`{"disable_redirects":true,"Timeout":true}`:                {DisableRedirects: true},
		`{"args":["a"],"ScriptArgs":["b"]}`:                        {ScriptArgs: []string{"b"}},
		`{"header":{"X":["y","z"]},"outputmaxsize":5,"Token":"t"}`: {Header: map[string][]string{"X": {"y", "z"}}, OutputMaxSize: 5, Token: "t"},
	} {
		got, err := definition.DecodeCheck(strings.NewReader(body))
		if err != nil {
			t.Errorf("DecodeCheck(%s): %v", body, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("DecodeCheck(%s) (-want +got):\n%s", body, diff)
		}
	}
	for body, want := range map[string]string{
		`{"CheckID":"x"}`:              `json: unknown field "CheckID"`,
		`{"Script":"x"}`:               `json: unknown field "Script"`,
		`{"success_before_passing":1}`: `json: unknown field "success_before_passing"`,
		`{"output_max_size":1}`:        `json: unknown field "output_max_size"`,
		`{"alias_service":"x"}`:        `json: unknown field "alias_service"`,
		`{"os_service":"x"}`:           `json: unknown field "os_service"`,
		`{"header":{"X":"y"}}`:         `json: cannot unmarshal string into field header.X of type []string`,
		`{"TTL":"1"}`:                  `time: missing unit in duration "1"`,
	} {
		if _, err := definition.DecodeCheck(strings.NewReader(body)); err == nil || err.Error() != want {
			t.Errorf("DecodeCheck(%s) = %v, want %s", body, err, want)
		}
	}
}

func TestServiceFromConfig(t *testing.T) {
	got, err := definition.ServiceFromConfig(map[string]any{
		"Name": "web", "port": 80, "tags": []any{"a"},
		"checks":  []any{map[string]any{"id": "c", "ttl": "1m", "failures_before_critical": 2}, map[string]any{"args": []any{"x"}, "interval": "1s"}},
		"weights": []map[string]any{{"passing": 5}},
		"connect": []map[string]any{{"sidecar_service": []map[string]any{{"proxy": map[string]any{
			"upstreams": []map[string]any{{"destination_name": "db", "local_bind_port": 9191.0, "config": []map[string]any{{"limits": []map[string]any{{"max_connections": 3}}}}}},
		}}}}},
	}, "services[0]")
	if err != nil {
		t.Fatal(err)
	}
	want := &definition.Service{
		Name: "web", Port: 80, Tags: []string{"a"}, Weights: &catalog.Weights{Passing: 5},
		Checks: []definition.Check{{ID: "c", TTL: time.Minute, FailuresBeforeCritical: 2}, {ScriptArgs: []string{"x"}, Interval: time.Second}},
		Connect: &definition.Connect{SidecarService: &definition.Service{Proxy: &catalog.Proxy{Upstreams: []catalog.Upstream{{
			DestinationName: "db", LocalBindPort: 9191, Config: map[string]any{"limits": map[string]any{"max_connections": 3.0}},
		}}}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConfigErrorsNameEveryField(t *testing.T) {
	_, err := definition.ServiceFromConfig(map[string]any{
		"name": 7, "bogus": 1, "enabletagoverride": true,
		"check": map[string]any{"ttl": "5x", "checkid": "x"}, "proxy": map[string]any{"upstreams": []any{map[string]any{"nope": 1}}},
	}, "services[1]")
	want := `invalid config key services[1].bogus
services[1].check.ttl: invalid duration: "5x": time: unknown unit "x" in duration "5x"
invalid config key services[1].check.checkid
invalid config key services[1].enabletagoverride
'services[1].name' expected type 'string', got unconvertible type 'int', value: '7'
invalid config key services[1].proxy.upstreams[0].nope`
	if err == nil || !sameLines(err.Error(), want) {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	fe, ok := errors.AsType[*definition.FieldError](err)
	if !ok || !strings.HasPrefix(fe.Path, "services[1].") || !errors.Is(err, definition.ErrUnknownKey) {
		t.Errorf("first error %#v", fe)
	}
}

func sameLines(a, b string) bool {
	count := map[string]int{}
	for l := range strings.SplitSeq(a, "\n") {
		count[l]++
	}
	for l := range strings.SplitSeq(b, "\n") {
		count[l]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestCheckTypeIsTheFirstMatch(t *testing.T) {
	s := time.Second
	for _, tt := range []struct {
		check definition.Check
		want  string
	}{
		{definition.Check{GRPC: "a", HTTP: "b", Interval: s}, "grpc"},
		{definition.Check{HTTP: "b", TCP: "c", Interval: s}, "http"},
		{definition.Check{HTTP: "b", TTL: s}, "ttl"},
		{definition.Check{TCP: "c", UDP: "d", Interval: s}, "tcp"},
		{definition.Check{UDP: "c", Interval: s}, "udp"},
		{definition.Check{AliasNode: "n", Interval: s}, "alias"},
		{definition.Check{AliasService: "n"}, "alias"},
		{definition.Check{DockerContainerID: "x", ScriptArgs: []string{"y"}, Interval: s}, "docker"},
		{definition.Check{ScriptArgs: []string{"y"}, Interval: s}, "script"},
		{definition.Check{H2PING: "x", OSService: "y", Interval: s}, "h2ping"},
		{definition.Check{OSService: "y", Interval: s}, "os_service"},
		{definition.Check{HTTP: "x"}, ""},
	} {
		if got := tt.check.CheckType(); got != tt.want {
			t.Errorf("type of %+v is %q, want %q", tt.check, got, tt.want)
		}
	}
}

func TestCheckValidate(t *testing.T) {
	s := time.Second
	for _, tt := range []struct {
		check definition.Check
		want  string // empty means valid
	}{
		{definition.Check{TTL: s, Interval: s}, "Interval and TTL cannot both be specified"},
		{definition.Check{HTTP: "x"}, "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"},
		{definition.Check{GRPC: "x"}, "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks"},
		{definition.Check{AliasService: "x", HTTP: "y", Interval: s}, "Interval cannot be set for Alias checks"},
		{definition.Check{AliasService: "x", Interval: s}, ""},
		{definition.Check{AliasService: "x", TTL: s}, "TTL must be not be set for Alias checks"},
		{definition.Check{}, "TTL must be > 0 for TTL checks"},
		{definition.Check{DockerContainerID: "x", Shell: "sh", Interval: s}, "TTL must be > 0 for TTL checks"},
		{definition.Check{TTL: s, OutputMaxSize: -1}, "MaxOutputMaxSize must be positive"},
		{definition.Check{HTTP: "x", Interval: s, FailuresBeforeWarning: 3}, "FailuresBeforeWarning can't be higher than FailuresBeforeCritical"},
		{definition.Check{HTTP: "x", Interval: s, FailuresBeforeWarning: 3, FailuresBeforeCritical: 3}, ""},
	} {
		err := tt.check.Validate()
		if got := text(err); got != tt.want {
			t.Errorf("Validate(%+v) = %q, want %q", tt.check, got, tt.want)
		}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestValidateRegistration(t *testing.T) {
	for body, want := range map[string]string{
		`{"Name":"w"}`:                         "",
		`{"Name":"w","Weights":{}}`:            "Invalid Weights: Passing must be greater than 0",
		`{"Name":"w","Meta":{"":"x"}}`:         "Invalid Service Meta: Couldn't load metadata pair ('', 'x'): Key cannot be blank",
		`{"Name":"w","Locality":{"Zone":"z"}}`: "Validation failed: 1 error occurred:\n\t* zone cannot be set without region\n\n",
		`{"Name":"w","Connect":{"SidecarService":{"ID":"y","Connect":{"SidecarService":{}}}}}`: "Validation failed: 2 errors occurred:\n\t* A SidecarService cannot specify an ID as this is managed by the agent\n\t* A SidecarService cannot have a nested SidecarService\n\n",
		`{"Name":"g","Kind":"mesh-gateway","Port":1,"Connect":{"SidecarService":{}}}`:          "Validation failed: 1 error occurred:\n\t* A mesh-gateway cannot have a sidecar service defined\n\n",
		`{"Name":"w","Check":{"Name":"z"}}`:                                                    "Invalid check: TTL must be > 0 for TTL checks",
		`{"Name":"w","Checks":[{}]}`:                                                           "Invalid check: TTL must be > 0 for TTL checks",
		`{"Name":"w","Check":{},"Checks":[]}`:                                                  "",
		`{"Name":"w","Check":{"TTL":"1s","Status":"zz"}}`:                                      "Status for checks must 'passing', 'warning', 'critical'",
		`{"Name":"w","Connect":{"SidecarService":{"Check":{"HTTP":"x"}}}}`:                     "Invalid check in sidecar_service: Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
	} {
		err := mustService(t, body).ValidateRegistration()
		if text(err) != want {
			t.Errorf("%s: %q, want %q", body, text(err), want)
		}
		if err != nil && wireerr.Status(err) != 400 {
			t.Errorf("%s: status %d", body, wireerr.Status(err))
		}
	}
}

func TestNestedChecksAreNumbered(t *testing.T) {
	ids := func(body string) (out []string) {
		for _, c := range mustService(t, body).NestedChecks() {
			out = append(out, c.ID+"="+c.Name)
		}
		return out
	}
	if got, want := ids(`{"Name":"api","ID":"a","Check":{"TTL":"1s"}}`), []string{"service:a=Service 'api' check"}; !cmp.Equal(got, want) {
		t.Errorf("single: %q", got)
	}
	got := ids(`{"Name":"api","Check":{"TTL":"1s"},"Checks":[{"CheckID":"mine","TTL":"1s"},{"Name":"n","TTL":"1s"}]}`)
	if want := []string{"service:api:1=Service 'api' check", "mine=Service 'api' check", "service:api:3=n"}; !cmp.Equal(got, want) {
		t.Errorf("several: %q", got)
	}
}

func TestInstanceDefaults(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{"Name":"x","Address":"10.0.0.1","Port":7,"TaggedAddresses":{"lan_ipv4":{"Address":"10.9.9.9","Port":70}}}`, "lan_ipv4=10.9.9.9:70 wan_ipv4=10.0.0.1:7"},
		{`{"Name":"x","Address":"2001:db8::1","Port":7}`, "lan_ipv6=2001:db8::1:7 wan_ipv6=2001:db8::1:7"},
		{`{"Name":"x","Address":"db.example.com","Port":7}`, ""},
	}
	for _, tt := range tests {
		inst := mustService(t, tt.body).Instance()
		var got []string
		for _, tag := range []string{"lan", "lan_ipv4", "lan_ipv6", "wan", "wan_ipv4", "wan_ipv6"} {
			if a, ok := inst.TaggedAddresses[tag]; ok {
				got = append(got, tag+"="+a.Address+":"+itoa(a.Port))
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.body, s, tt.want)
		}
		if inst.ID != "x" || *inst.Weights != (catalog.Weights{Passing: 1, Warning: 1}) {
			t.Errorf("%s: %+v", tt.body, inst)
		}
	}
}

func itoa(n int) string {
	return strings.TrimSpace(strings.Replace(time.Duration(n).String(), "ns", "", 1))
}

func TestRecordTexts(t *testing.T) {
	c := definition.Check{Name: "n", Interval: 10 * time.Millisecond, TCP: "x"}
	if r := c.Record("node1", nil, false); r.Interval != "10ms" || r.Timeout != "0s" || r.CheckID != "n" || r.Status != "critical" || r.Type != "tcp" {
		t.Errorf("stand-alone: %+v", r)
	}
	svc := &catalog.Service{ID: "i", Service: "s", Tags: []string{"t"}}
	if r := c.Record("node1", svc, true); r.Timeout != "" || r.ServiceID != "i" || r.ServiceName != "s" || len(r.ServiceTags) != 1 {
		t.Errorf("nested: %+v", r)
	}
}

func expand(t *testing.T, body string, assign func(string) (int, error)) (*definition.Service, error) {
	t.Helper()
	s := mustService(t, body)
	side, err := s.ExpandSidecar()
	if err != nil || side == nil {
		return side, err
	}
	return side, side.ExpandSidecarPort(s.ServiceID(), assign)
}

func TestSidecarDefaults(t *testing.T) {
	side, err := expand(t, `{"ID":"web1","Name":"web","Port":8080,"Tags":["t"],"Meta":{"m":"1"},"Address":"10.0.0.9","Locality":{"Region":"r"},"Token":"secret",
		"Weights":{"Passing":9,"Warning":9},"Connect":{"SidecarService":{}}}`, func(id string) (int, error) {
		if id != "web1-sidecar-proxy" {
			t.Errorf("port asked for %q", id)
		}
		return 21000, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &definition.Service{
		ID: "web1-sidecar-proxy", Name: "web-sidecar-proxy", Kind: "connect-proxy", Address: "10.0.0.9", Port: 21000, Tags: []string{"t"},
		Meta: map[string]string{"m": "1"}, Locality: &catalog.Locality{Region: "r"}, Token: "secret",
		Proxy: &catalog.Proxy{DestinationServiceName: "web", DestinationServiceID: "web1", LocalServiceAddress: "127.0.0.1", LocalServicePort: 8080},
		Checks: []definition.Check{
			{Name: "Connect Sidecar Listening", TCP: "10.0.0.9:21000", Interval: 10 * time.Second},
			{Name: "Connect Sidecar Aliasing web1", AliasService: "web1"},
		},
	}
	if diff := cmp.Diff(want, side); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w := side.Instance().Weights; *w != (catalog.Weights{Passing: 1, Warning: 1}) {
		t.Errorf("weights %v", *w)
	}
}

func TestSidecarOverridesAndErrors(t *testing.T) {
	noPort := func(string) (int, error) { t.Error("asked for a port"); return 0, nil }
	side, err := expand(t, `{"Name":"web","Port":1,"Connect":{"SidecarService":{"Name":"front","Port":2222,"Tags":["o"],"Token":"own",
		"Proxy":{"LocalServiceAddress":"127.0.0.2","LocalServicePort":99},"Check":{"TTL":"1s"}}}}`, noPort)
	if err != nil || side.Name != "front" || side.Proxy.LocalServicePort != 99 || len(side.Checks) != 0 || side.Token != "own" {
		t.Errorf("%+v, %v", side, err)
	}
	side, err = expand(t, `{"Name":"sock","SocketPath":"/tmp/s","Connect":{"SidecarService":{"Port":2}}}`, noPort)
	if err != nil || side.Proxy.LocalServiceSocketPath != "/tmp/s" || side.Proxy.LocalServiceAddress != "" || side.Proxy.LocalServicePort != 0 {
		t.Errorf("%+v, %v", side.Proxy, err)
	}
	_, err = expand(t, `{"Name":"bad","Connect":{"SidecarService":{"Meta":{"consul-x":"1"}}}}`, noPort)
	if want := "Invalid SidecarService: Invalid Service Meta: Couldn't load metadata pair ('consul-x', '1'): Key prefix 'consul-' is reserved for internal use"; text(err) != want {
		t.Errorf("meta: %v", err)
	}
	_, err = expand(t, `{"Name":"bad","Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"DestinationName":"c"}]}}}}`, noPort)
	if want := "Failed Validation: 1 error occurred:\n\t* upstream local bind port or local socket path must be defined and nonzero\n\n"; text(err) != want {
		t.Errorf("upstream: %v", err)
	}
}

func TestAssignPort(t *testing.T) {
	used := map[int]bool{10: true, 11: true}
	for _, tt := range []struct {
		low, high, current, want int
		err                      string
	}{
		{low: 10, high: 12, want: 12},
		{low: 10, high: 12, current: 11, want: 11},
		{low: 10, high: 12, current: 99, want: 12},
		{low: 10, high: 11, err: "no port provided for sidecar_service and none left in the configured range [10, 11]"},
		{low: 0, high: 0, current: 5, err: "no port provided for sidecar_service and auto-assignment disabled in config"},
	} {
		got, err := definition.AssignPort(tt.low, tt.high, tt.current, used)
		if got != tt.want || text(err) != tt.err {
			t.Errorf("%+v: %d, %v", tt, got, err)
		}
	}
}

func TestMergeCentral(t *testing.T) {
	svc := mustService(t, `{"Kind":"connect-proxy","Name":"web-proxy","Port":1,"Proxy":{"DestinationServiceName":"web","Config":{"a":"own"},
		"Upstreams":[{"DestinationName":"db","LocalBindPort":1},{"DestinationName":"own","LocalBindPort":2,"Config":{"connect_timeout_ms":77}},
		{"DestinationName":"far","DestinationPeer":"p","LocalBindPort":3},{"DestinationType":"prepared_query","DestinationName":"db","LocalBindPort":4}]}}`).Instance()
	r := &entry.Resolved{
		Config: map[string]any{"a": "central", "protocol": "http"}, Mode: "transparent", MeshGateway: catalog.MeshGateway{Mode: "local"},
		Expose: catalog.Expose{Checks: true}, AccessLogs: catalog.AccessLogs{Enabled: true}, TransparentProxy: catalog.TransparentProxy{OutboundListenerPort: 5},
		Upstreams: []entry.ResolvedUpstream{
			{UpstreamID: entry.UpstreamID{Name: "*"}, Config: map[string]any{"protocol": "http"}},
			{UpstreamID: entry.UpstreamID{Name: "db"}, Config: map[string]any{"connect_timeout_ms": 444.0, "mesh_gateway": map[string]any{"mode": "remote"}}},
			{UpstreamID: entry.UpstreamID{Name: "own"}, Config: map[string]any{"connect_timeout_ms": 333.0, "protocol": "http"}},
			{UpstreamID: entry.UpstreamID{Name: "far", Peer: "p"}, Config: map[string]any{"protocol": "http", "x": 1.0}},
			{UpstreamID: entry.UpstreamID{Name: "more"}, Config: map[string]any{"y": 1.0}},
		},
	}
	got := definition.MergeCentral(svc, r).Proxy
	want := catalog.Proxy{
		DestinationServiceName: "web", Mode: "transparent", MeshGateway: catalog.MeshGateway{Mode: "local"},
		Config: map[string]any{"a": "own", "protocol": "http"}, Expose: catalog.Expose{Checks: true},
		AccessLogs: &catalog.AccessLogs{Enabled: true}, TransparentProxy: &catalog.TransparentProxy{OutboundListenerPort: 5},
		Upstreams: []catalog.Upstream{
			{DestinationType: "service", DestinationName: "db", LocalBindPort: 1, Config: map[string]any{"connect_timeout_ms": 444.0}, MeshGateway: catalog.MeshGateway{Mode: "remote"}},
			{DestinationType: "service", DestinationName: "own", LocalBindPort: 2, Config: map[string]any{"connect_timeout_ms": 77.0, "protocol": "http"}},
			{DestinationType: "service", DestinationName: "far", DestinationPeer: "p", LocalBindPort: 3, Config: map[string]any{"x": 1.0}},
			{DestinationType: "prepared_query", DestinationName: "db", LocalBindPort: 4},
			{DestinationNamespace: "default", DestinationPartition: "default", DestinationName: "*", Config: map[string]any{"protocol": "http"}, CentrallyConfigured: true},
			{DestinationNamespace: "default", DestinationPartition: "default", DestinationName: "more", Config: map[string]any{"y": 1.0}, CentrallyConfigured: true},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if svc.Proxy.Mode != "" || len(svc.Proxy.Upstreams) != 4 || svc.Proxy.Config["protocol"] != nil {
		t.Errorf("the argument was changed: %+v", svc.Proxy)
	}
	plain := mustService(t, `{"Name":"web"}`).Instance()
	if definition.MergeCentral(plain, r) != plain {
		t.Error("a plain service was merged")
	}
}

func FuzzDecodeService(f *testing.F) {
	f.Add(`{"Name":"web","port":1,"Check":{"TTL":"1s"},"Connect":{"SidecarService":{"Proxy":{"Upstreams":[{"Config":{"a":[1,null]}}]}}}}`)
	f.Add(`{"name":"x","tagged_addresses":{"lan":null},"meta":null,"checks":[null,{"args":["a"],"interval":1e9}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		s, err := definition.DecodeService(strings.NewReader(body))
		if err != nil || s.ValidateIdentity() != nil || s.ValidateRegistration() != nil {
			return
		}
		// What passed validation keeps its rules through expansion and conversion.
		inst := s.Instance()
		if inst.ID == "" || inst.Validate() != nil || inst.Weights.Validate() != nil {
			t.Errorf("invalid instance %+v", inst)
		}
		for _, c := range s.NestedChecks() {
			if c.ID == "" || c.Name == "" || c.CheckType() == "" {
				t.Errorf("unusable check %+v", c)
			}
		}
		if side, err := s.ExpandSidecar(); err == nil && side != nil {
			if err := side.ExpandSidecarPort(s.ServiceID(), func(string) (int, error) { return 21000, nil }); err != nil {
				t.Error(err)
			}
			if side.Kind == catalog.KindConnectProxy && side.Instance().Validate() != nil {
				t.Errorf("sidecar %+v: %v", side, side.Instance().Validate())
			}
		}
	})
}

func FuzzDecodeCheck(f *testing.F) {
	f.Add(`{"Name":"x","HTTP":"http://a","Interval":"1s","Header":{"a":["b"]}}`)
	f.Fuzz(func(t *testing.T, body string) {
		c, err := definition.DecodeCheck(strings.NewReader(body))
		if err != nil || c.ValidateRegistration() != nil {
			return
		}
		if c.CheckType() == "" {
			t.Errorf("valid check without a type: %+v", c)
		}
	})
}

func FuzzServiceFromConfig(f *testing.F) {
	f.Add(`{"name":"web","check":[{"ttl":"1s"}],"connect":{"sidecar_service":[{"proxy":{"config":{"a":{"b":[1]}}}}]}}`)
	f.Add(`{"Name":1,"nope":{},"checks":[[]],"weights":[{"passing":1.5}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		var m map[string]any
		if json.Unmarshal([]byte(text), &m) != nil {
			return
		}
		s, err := definition.ServiceFromConfig(m, "services[0]")
		if err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				if fe, ok := e.(*definition.FieldError); !ok || !strings.HasPrefix(fe.Path, "services[0]") {
					t.Errorf("error without its place: %v", e)
				}
			}
			return
		}
		if s.Name != "" && s.ValidateConfig() == nil && s.ValidateRegistration() != nil && s.Weights == nil && len(s.Meta) == 0 {
			t.Errorf("passes as configuration but not as a registration: %v", s.ValidateRegistration())
		}
	})
}

func TestValidateConfigReportsEverything(t *testing.T) {
	s := &definition.Service{Name: "x", Port: 1, SocketPath: "/s", Weights: &catalog.Weights{}, Meta: map[string]string{"": "v"}, Kind: "connect-proxy",
		Checks: []definition.Check{{}, {Name: "n", HTTP: "h"}}, Connect: &definition.Connect{SidecarService: &definition.Service{ID: "y"}}}
	want := `Invalid weight definition for service x: Passing must be greater than 0
invalid meta for service x: Couldn't load metadata pair ('', 'v'): Key cannot be blank
service x cannot have both socket path /s and address/port
sidecar_service can't specify an ID
service "x": check "": TTL must be > 0 for TTL checks
service "x": check "n": Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks`
	if err := s.ValidateConfig(); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	c := &definition.Check{Name: "c", TTL: 1, Interval: 1}
	if err := c.ValidateConfig(); err == nil || err.Error() != `check "c": Interval and TTL cannot both be specified` {
		t.Errorf("check: %v", err)
	}
}
