package listener

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func TestFilterChainPrecedence(t *testing.T) {
	m := func(name string, cm model.ChainMatch) *chain {
		return &chain{model: &model.FilterChain{Name: name, Match: cm}}
	}
	chains := []*chain{
		m("port", model.ChainMatch{DestinationPort: 8080}),
		m("port and name", model.ChainMatch{DestinationPort: 8080, ServerNames: []string{"a.example"}}),
		m("wide net", model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.0/8")}),
		m("narrow net", model.ChainMatch{DestinationPrefixes: prefixes("10.1.0.0/16"), ServerNames: []string{"only.example"}}),
		m("v6 net", model.ChainMatch{DestinationPrefixes: prefixes("fd00::/8")}),
		m("exact name", model.ChainMatch{ServerNames: []string{"x.a.example"}}),
		m("long wildcard", model.ChainMatch{ServerNames: []string{"*.a.example"}}),
		m("short wildcard", model.ChainMatch{ServerNames: []string{"*.example"}}),
		m("tls", model.ChainMatch{TransportProtocol: "tls"}),
		m("tls h2", model.ChainMatch{TransportProtocol: "tls", ApplicationProtocols: []string{"h2"}}),
		m("from loopback", model.ChainMatch{TransportProtocol: "raw_buffer", SourceType: model.SourceLocal}),
		m("from port", model.ChainMatch{TransportProtocol: "raw_buffer", SourcePorts: []uint16{7, 8}}),
		m("from net", model.ChainMatch{TransportProtocol: "raw_buffer", SourcePrefixes: prefixes("192.168.0.0/16")}),
		m("from net and port", model.ChainMatch{TransportProtocol: "raw_buffer", SourcePrefixes: prefixes("192.168.0.0/16"), SourcePorts: []uint16{9}}),
		m("direct", model.ChainMatch{TransportProtocol: "raw_buffer", DirectSourcePrefixes: prefixes("172.16.0.0/12")}),
	}
	mt := newMatcher(chains, m("default", model.ChainMatch{}))
	tests := []struct {
		name          string
		local, remote string
		direct        string // default remote
		server        string
		transport     string
		protocols     []string
		want          string
	}{
		{name: "port beats all else", local: "10.9.9.9:8080", remote: "1.1.1.1:1", server: "x.a.example", want: "port"},
		{name: "port with name beats port alone", local: "1.2.3.4:8080", remote: "1.1.1.1:1", server: "a.example", want: "port and name"},
		{name: "network beats name", local: "10.9.9.9:1", remote: "1.1.1.1:1", server: "x.a.example", want: "wide net"},
		{name: "longest prefix, its name fits", local: "10.1.2.3:1", remote: "1.1.1.1:1", server: "only.example", want: "narrow net"},
		{name: "longest prefix, its name does not fit: no way back", local: "10.1.2.3:1", remote: "1.1.1.1:1", server: "other.example", want: "default"},
		{name: "IPv6", local: "[fd00::1]:1", remote: "[fd00::2]:1", want: "v6 net"},
		{name: "IPv4 in IPv6", local: "[::ffff:10.9.9.9]:1", remote: "1.1.1.1:1", want: "wide net"},
		{name: "exact name", local: "1.2.3.4:1", remote: "1.1.1.1:1", server: "x.a.example", want: "exact name"},
		{name: "longest wildcard", local: "1.2.3.4:1", remote: "1.1.1.1:1", server: "y.a.example", want: "long wildcard"},
		{name: "wildcard covers several labels", local: "1.2.3.4:1", remote: "1.1.1.1:1", server: "q.y.b.example", want: "short wildcard"},
		{name: "wildcard does not cover its base", local: "1.2.3.4:1", remote: "1.1.1.1:1", server: "example", transport: "tls", want: "tls"},
		{name: "transport", local: "1.2.3.4:1", remote: "1.1.1.1:1", transport: "tls", protocols: []string{"http/1.1"}, want: "tls"},
		{name: "application protocol", local: "1.2.3.4:1", remote: "1.1.1.1:1", transport: "tls", protocols: []string{"http/1.1", "h2"}, want: "tls h2"},
		{name: "loopback beats source network", local: "127.0.0.1:1", remote: "127.0.0.1:7", transport: "raw_buffer", want: "from loopback"},
		{name: "same address is local", local: "192.168.1.1:1", remote: "192.168.1.1:7", transport: "raw_buffer", want: "from loopback"},
		{name: "source network beats source port", local: "1.2.3.4:1", remote: "192.168.1.1:7", transport: "raw_buffer", want: "from net"},
		{name: "source port within network", local: "1.2.3.4:1", remote: "192.168.1.1:9", transport: "raw_buffer", want: "from net and port"},
		{name: "source port", local: "1.2.3.4:1", remote: "1.1.1.1:8", transport: "raw_buffer", want: "from port"},
		{name: "direct peer beats the told one", local: "1.2.3.4:1", remote: "192.168.1.1:7", direct: "172.16.1.1:7", transport: "raw_buffer", want: "direct"},
		{name: "nothing fits", local: "1.2.3.4:1", remote: "1.1.1.1:1", transport: "raw_buffer", want: "default"},
		{name: "nobody looked", local: "1.2.3.4:1", remote: "1.1.1.1:1", want: "default"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &facts{local: netip.MustParseAddrPort(tt.local), remote: netip.MustParseAddrPort(tt.remote), server: tt.server, transport: tt.transport, protocols: tt.protocols}
			f.direct = f.remote
			if tt.direct != "" {
				f.direct = netip.MustParseAddrPort(tt.direct)
			}
			if got := mt.match(f); got == nil || got.model.Name != tt.want {
				t.Errorf("got %v, want %q", got, tt.want)
			}
		})
	}
	if got := newMatcher(chains, nil).match(&facts{}); got != nil {
		t.Errorf("a connection without facts, no default: got %q", got.model.Name)
	}
}

// record is what a client sends first, with the given settings.
func record(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		tls.Client(a, cfg).HandshakeContext(context.Background())
		a.Close()
	}()
	defer b.Close()
	header := make([]byte, 5)
	if _, err := io.ReadFull(b, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

func TestClientHelloIsRead(t *testing.T) {
	for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		b := record(t, &tls.Config{ServerName: "DB.Example", NextProtos: []string{"h2", "http/1.1"}, MaxVersion: max, InsecureSkipVerify: true})
		h, err := parseHello(b)
		if err != nil || h.server != "db.example" || !slices.Equal(h.protocols, []string{"h2", "http/1.1"}) {
			t.Errorf("version %x: got %+v, %v", max, h, err)
		}
		for n := range b {
			if _, err := parseHello(b[:n]); !errors.Is(err, errMore) {
				t.Fatalf("the first %d bytes of %d: %v, want errMore", n, len(b), err)
			}
		}
		// The same message in many records.
		var split []byte
		for rest := b[5:]; len(rest) > 0; {
			n := min(7, len(rest))
			split = append(split, 22, 3, 1, 0, byte(n))
			split = append(split, rest[:n]...)
			rest = rest[n:]
		}
		if h, err := parseHello(split); err != nil || h.server != "db.example" {
			t.Errorf("in many records: got %+v, %v", h, err)
		}
	}
}

func TestWhatIsNotAClientHello(t *testing.T) {
	for name, b := range map[string][]byte{
		"HTTP":                  []byte("GET / HTTP/1.1\r\n"),
		"another record":        {23, 3, 1, 0, 1, 0},
		"another message":       {22, 3, 1, 0, 4, 2, 0, 0, 0},
		"empty record":          {22, 3, 1, 0, 0},
		"lengths that disagree": append([]byte{22, 3, 1, 0, 44, 1, 0, 0, 40}, bytes.Repeat([]byte{0xff}, 40)...),
	} {
		if _, err := parseHello(b); !errors.Is(err, errNotHello) {
			t.Errorf("%s: %v, want errNotHello", name, err)
		}
	}
	if _, err := parseHello([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0, 0}); !errors.Is(err, errHelloTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(record(f, &tls.Config{ServerName: "db.example", NextProtos: []string{"h2"}, InsecureSkipVerify: true}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		// What was understood stays so when more follows.
		again, err := parseHello(append(slices.Clone(b), 0xff))
		if err != nil || again.server != h.server || !slices.Equal(again.protocols, h.protocols) {
			t.Errorf("with a byte more: %+v, %v; before %+v", again, err, h)
		}
		if h.server != strings.ToLower(h.server) {
			t.Errorf("server name %q is not in lower case", h.server)
		}
	})
}

func TestHTTPIsToldFromOthers(t *testing.T) {
	for in, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n": "http/1.1",
		"GET / HTTP/1.0\r\n\r\n":            "http/1.0",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":  "h2c",
		"SSH-2.0-x\r\n":                     "",
		"\x00\x01\x02":                      "",
		"hello there, this is some line without an end" + strings.Repeat("x", 9000): "",
	} {
		a, b := net.Pipe()
		go func() {
			a.Write([]byte(in))
			a.Close()
		}()
		got, seen, err := inspectHTTP(b, nil)
		if err != nil || got != want {
			t.Errorf("%.20q: %q, %v; want %q", in, got, err, want)
		}
		if !bytes.HasPrefix([]byte(in), seen) {
			t.Errorf("%.20q: what was read ahead is not what was sent", in)
		}
		b.Close()
	}
}

func TestClientsAreInspectedWhereItMatters(t *testing.T) {
	tcp := func(m model.ChainMatch, filters ...model.NetworkFilter) *chain {
		return &chain{model: &model.FilterChain{Match: m, Filters: filters, Terminal: &model.TCPProxy{}}}
	}
	database := model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.1/32")}
	named := model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.2/32"), ServerNames: []string{"a.test"}}
	mixed := newMatcher([]*chain{
		tcp(database), tcp(named),
		tcp(model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.3/32")}, &model.SNICluster{}),
		tcp(model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.4/32")}, &model.NetworkRBAC{}),
		tcp(model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.5/32")}, &model.ConnectionLimit{}),
		tcp(model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.6/32"), TransportProtocol: "tls"}),
		tcp(model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.7/32"), ApplicationProtocols: []string{"h2"}}),
		{model: &model.FilterChain{Match: model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.8/32")}, Terminal: &model.HTTPManager{}}},
		{model: &model.FilterChain{Match: model.ChainMatch{DestinationPrefixes: prefixes("10.0.0.9/32")}, Terminal: &model.TCPProxy{}, TLS: &model.DownstreamTLS{}}},
	}, tcp(model.ChainMatch{}))
	for to, want := range map[string]bool{
		"10.0.0.1": false, "10.0.0.2": true, "10.0.0.3": true, "10.0.0.4": true, "10.0.0.5": false, "10.0.0.6": true, "10.0.0.7": true, "10.0.0.8": true, "10.0.0.9": true,
		"10.1.1.1": false, // the default chain
	} {
		if got := mixed.peeks(&facts{local: netip.AddrPortFrom(netip.MustParseAddr(to), 5432)}); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
}
