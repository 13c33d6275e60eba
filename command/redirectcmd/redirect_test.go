package redirectcmd_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/redirectcmd"
	"github.com/sarnmesh/sarn/command/verb"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestScript(t *testing.T) {
	all := redirectcmd.Rules{
		ProxyUID: 4000, InboundPort: 20000, OutboundPort: 15001,
		ExcludeInboundPorts: []uint16{8500, 22, 22}, ExcludeOutboundPorts: []uint16{3306},
		ExcludeOutbound: prefixes("10.1.0.0/16", "10.0.0.1/8", "192.0.2.7/32", "2001:db8::/32"), ExcludeUIDs: []uint32{0},
		DNS: netip.MustParseAddrPort("127.0.0.1:8600"),
	}
	tests := []struct {
		name  string
		rules redirectcmd.Rules
		want  []string // lines, in this order
		never []string // within a line
	}{
		{
			name: "only what is needed", rules: redirectcmd.Rules{ProxyUID: 1, InboundPort: 2, OutboundPort: 3},
			want:  []string{"delete table inet sarn_redirect", "meta l4proto tcp redirect to :2", "meta skuid { 1 } return", "ip daddr 127.0.0.0/8 return", "meta nfproto ipv4 meta l4proto tcp redirect to :3"},
			never: []string{"dport", "dnat"},
		},
		{
			name: "everything", rules: all,
			want: []string{
				`iifname "lo" return`, "fib daddr type != local return", "tcp dport { 22, 8500 } return", "meta l4proto tcp redirect to :20000",
				"meta skuid { 0, 4000 } return", "meta nfproto ipv4 udp dport 53 dnat ip to 127.0.0.1:8600", "meta nfproto ipv4 tcp dport 53 dnat ip to 127.0.0.1:8600",
				"ip daddr 127.0.0.0/8 return", "tcp dport { 3306 } return", "ip daddr { 10.0.0.0/8, 192.0.2.7/32 } return", "meta nfproto ipv4 meta l4proto tcp redirect to :15001",
			},
			never: []string{"10.1.0.0", "2001"},
		},
		{
			name: "DNS over IPv6", rules: redirectcmd.Rules{InboundPort: 2, OutboundPort: 3, DNS: netip.MustParseAddrPort("[::1]:53")},
			want: []string{"meta nfproto ipv6 udp dport 53 dnat ip6 to [::1]:53"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			script := tt.rules.Script()
			lines := strings.Split(script, "\n")
			at := 0
			for _, w := range tt.want {
				i := slices.IndexFunc(lines[at:], func(l string) bool { return strings.TrimSpace(l) == w })
				if i < 0 {
					t.Fatalf("no %q in its place:\n%s", w, script)
				}
				at += i + 1
			}
			for _, n := range tt.never {
				if strings.Contains(script, n) {
					t.Errorf("%q is in:\n%s", n, script)
				}
			}
		})
	}
}

// run runs the command, removing rules from or adding them to a namespace that is not there unless that fails before.
func run(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	c, err := redirectcmd.Verbs()[0].Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &out, Err: &out})()
	if err != nil {
		t.Fatal(err)
	}
	if code := c.Run(append([]string{"-netns", "/nowhere"}, args...)); code != 1 {
		t.Fatalf("exit code %d: %s", code, out.String())
	}
	return out.String()
}

func TestFlags(t *testing.T) {
	tests := []struct{ name, args, want string }{
		{"no user", "-proxy-inbound-port=1", "==> -proxy-uid is required"},
		{"no port", "-proxy-uid=1", "==> either -proxy-id or -proxy-inbound-port are required"},
		{"ports given twice", "-proxy-uid=1 -proxy-id=x -proxy-outbound-port=1", "cannot be provided together with -proxy-id"},
		{"node alone", "-proxy-uid=1 -proxy-inbound-port=1 -node-name=n", "-node-name requires -proxy-id"},
		{"unknown user", "-proxy-uid=nobody-at-all -proxy-inbound-port=1", "-proxy-uid: user: unknown user nobody-at-all"},
		{"no such port", "-proxy-uid=1 -proxy-inbound-port=70000", "70000 is no port"},
		{"no such port to exclude", "-proxy-uid=1 -proxy-inbound-port=1 -exclude-inbound-port=ssh", `-exclude-inbound-port: "ssh" is no port`},
		{"no block", "-proxy-uid=1 -proxy-inbound-port=1 -exclude-outbound-cidr=10.0.0/8", "is neither a CIDR block nor an IP address"},
		{"no address", "-proxy-uid=1 -proxy-inbound-port=1 -consul-dns-ip=dns", `"dns" is no IP address`},
		{"scripts cannot be smuggled in", "-proxy-uid=1}; -proxy-inbound-port=1", "unknown user"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := run(t, strings.Fields(tt.args)...); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProxyThatIsNone(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/agent/service/web" {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"ID": "web", "Service": "web", "Port": 80})
	}))
	defer srv.Close()
	if got := run(t, "-proxy-uid=1", "-http-addr="+srv.URL, "-proxy-id=web"); !strings.Contains(got, "service web is not a proxy service") {
		t.Error(got)
	}
	if got := run(t, "-proxy-uid=1", "-http-addr="+srv.URL, "-proxy-id=gone"); !strings.Contains(got, "failed to fetch proxy service") {
		t.Error(got)
	}
}

func TestScriptIsUnderstood(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft")
	}
	r := redirectcmd.Rules{
		ProxyUID: 4000, InboundPort: 20000, OutboundPort: 15001, ExcludeInboundPorts: []uint16{22}, ExcludeOutboundPorts: []uint16{22},
		ExcludeOutbound: prefixes("10.0.0.0/8", "10.1.0.0/16"), DNS: netip.MustParseAddrPort("[::1]:53"),
	}
	check := func(script string) (string, error) {
		cmd := exec.Command(nft, "--check", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// The kernel has a say, too: it may not know of such rules, or not take them from us.
	const least = "table inet sarn_probe {\n chain c {\n  type nat hook output priority -100;\n  fib daddr type != local return\n  meta skuid 1 return\n  tcp dport 1 redirect to :2\n  meta nfproto ipv6 udp dport 53 dnat ip6 to [::1]:53\n }\n}\n"
	if out, err := check(least); err != nil {
		t.Skipf("no rules of this kind can be made here: %v\n%s", err, out)
	}
	if out, err := check(r.Script()); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, r.Script())
	}
}
