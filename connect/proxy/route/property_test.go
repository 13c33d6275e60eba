package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// naive finds the route of a request by reading the configuration from top to bottom.
func naive(c *model.RouteConfig, r *message.Request, random uint64) (virtualHost, name string) {
	host := strings.ToLower(r.Authority)
	var best *model.VirtualHost
	rank := -1
	for i := range c.VirtualHosts {
		for _, d := range c.VirtualHosts[i].Domains {
			k := -1
			switch {
			case d == host:
				k = 3000
			case d == "*":
				k = 0
			case strings.HasPrefix(d, "*") && strings.HasSuffix(host, d[1:]) && len(host) >= len(d):
				k = 2000 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(host, d[:len(d)-1]) && len(host) >= len(d):
				k = 1000 + len(d)
			}
			if k > rank {
				best, rank = &c.VirtualHosts[i], k
			}
		}
	}
	if best == nil {
		return "", ""
	}
	path, query, _ := strings.Cut(r.Path, "?")
	for i := range best.Routes {
		m := &best.Routes[i].Match
		p := path
		if m.IgnoreCase {
			p = strings.ToLower(p) // only ASCII here
		}
		fits := path != ""
		switch m.Kind {
		case model.PathPrefix:
			fits = fits && strings.HasPrefix(p, m.Path)
		case model.PathExact:
			fits = fits && p == m.Path
		case model.PathSeparatedPrefix:
			fits = fits && (p == m.Path || strings.HasPrefix(p, m.Path+"/"))
		case model.PathRegex:
			fits = fits && m.Regex.MatchString(path)
		case model.PathConnect:
			fits = r.Method == "CONNECT"
		}
		for _, h := range m.Headers {
			var values []string
			for v := range r.Header.Values(h.Name) {
				values = append(values, v)
			}
			switch {
			case h.Kind == model.HeaderPresent:
				fits = fits && (len(values) > 0) != h.Invert
			case len(values) == 0:
				fits = false
			default:
				fits = fits && slices.ContainsFunc(values, h.Match.Match) != h.Invert
			}
		}
		for _, q := range m.Query {
			found := false
			for _, p := range strings.Split(query, "&") {
				if k, v, _ := strings.Cut(p, "="); k == q.Name && p != "" {
					found = q.Match.Match(v)
					break
				}
			}
			fits = fits && found
		}
		if m.Fraction != nil {
			fits = fits && random%uint64(m.Fraction.Denominator) < uint64(m.Fraction.Numerator)
		}
		if fits {
			return best.Name, best.Routes[i].Name
		}
	}
	return best.Name, ""
}

func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

// somePath makes paths that often have one another's beginning.
func somePath(rnd *rand.Rand) string {
	var b strings.Builder
	for range 1 + rnd.IntN(4) {
		b.WriteString(pick(rnd, "/", "/a", "/ab", "/abc", "/b", "/A", "/api", "/é", "b", "c/"))
	}
	return "/" + strings.TrimPrefix(b.String(), "/")
}

func someTable(rnd *rand.Rand) *model.RouteConfig {
	c := &model.RouteConfig{}
	seen := map[string]bool{}
	for i := range 1 + rnd.IntN(6) {
		vh := model.VirtualHost{Name: fmt.Sprint("host ", i)}
		for range 1 + rnd.IntN(3) {
			d := pick(rnd, "", "a", "b", "a.b", "b.c", "-b.c", "a.b.c", ".c")
			d = pick(rnd, d, "*"+d, d+"*", "*")
			if d != "" && !seen[d] {
				seen[d] = true
				vh.Domains = append(vh.Domains, d)
			}
		}
		for j := range rnd.IntN(40) {
			m := model.RouteMatch{Kind: pick(rnd, model.PathPrefix, model.PathPrefix, model.PathExact, model.PathSeparatedPrefix, model.PathRegex, model.PathConnect)}
			m.Path = somePath(rnd)
			switch m.Kind {
			case model.PathPrefix:
				if rnd.IntN(8) == 0 {
					m.Path = ""
				}
			case model.PathSeparatedPrefix:
				m.Path = strings.TrimRight(m.Path, "/")
			case model.PathRegex:
				m.Path = pick(rnd, m.Path+".*", "("+m.Path+")?", "^"+m.Path+"[a-z]*", m.Path+"|/b", "(?i)"+m.Path, "("+m.Path+"b?)/", m.Path+"?")
				m.Regex = regexp.MustCompile(`\A(?:` + m.Path + `)\z`)
			}
			if m.Kind != model.PathRegex && m.Kind != model.PathConnect && rnd.IntN(4) == 0 && !strings.Contains(m.Path, "é") {
				m.IgnoreCase, m.Path = true, strings.ToLower(m.Path)
			}
			if rnd.IntN(3) == 0 {
				h := model.HeaderMatch{Name: pick(rnd, "x", "y"), Invert: rnd.IntN(2) == 0}
				if rnd.IntN(2) == 0 {
					h.Kind, h.Match = model.HeaderString, exactly(pick(rnd, "1", "2"))
				}
				m.Headers = append(m.Headers, h)
			}
			if rnd.IntN(6) == 0 {
				m.Query = append(m.Query, model.QueryMatch{Name: "q", Match: exactly(pick(rnd, "", "1"))})
			}
			if rnd.IntN(6) == 0 {
				m.Fraction = &model.Fraction{Numerator: 50, Denominator: 100}
			}
			vh.Routes = append(vh.Routes, to(fmt.Sprint(j), m))
		}
		c.VirtualHosts = append(c.VirtualHosts, vh)
	}
	return c
}

func someRequest(rnd *rand.Rand) *message.Request {
	r := request("GET h" + somePath(rnd) + pick(rnd, "", "", "?", "?q", "?p=1&q=1", "?q=1&q=2"))
	r.Authority = pick(rnd, "a", "B", "a.b", "x.a.B", "b.c", "a-b.c", "a.b.c", "x.c", "none", "")
	if rnd.IntN(8) == 0 {
		r.Method, r.Path = "CONNECT", ""
	}
	for range rnd.IntN(4) {
		r.Header.Add(pick(rnd, "x", "y"), pick(rnd, "1", "2"))
	}
	return r
}

// A compiled table finds what the configuration says.
func TestTableAgreesWithItsConfiguration(t *testing.T) {
	seed := testkit.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		c := someTable(rnd)
		table := compile(t, c)
		for range 60 {
			r, random := someRequest(rnd), rnd.Uint64()
			m := table.Match(&route.Facts{Request: r, Random: random})
			host, name := "", ""
			if m.VirtualHost != nil {
				host = m.VirtualHost.Name
			}
			if m.Route != nil {
				name = m.Route.Name
			}
			if wantHost, want := naive(c, r, random); host != wantHost || name != want {
				t.Fatalf("seed %d: %s %q%q %s: found %q in %q, want %q in %q, with %+v",
					seed, r.Method, r.Authority, r.Path, fields(&r.Header), name, host, want, wantHost, c.VirtualHosts)
			}
		}
	}
}

// Whatever a request says, it is matched as the configuration says, and what is sent on can be sent.
func FuzzMatch(f *testing.F) {
	c := someTable(rand.New(rand.NewPCG(7, 7)))
	for i := range c.VirtualHosts {
		for j := range c.VirtualHosts[i].Routes {
			c.VirtualHosts[i].Routes[j].Forward = &model.Forward{Cluster: "c", PrefixRewrite: "/new", HostHeader: "x", AppendXFH: true,
				Hash: []model.HashPolicy{{Cookie: &model.HashCookie{Name: "c"}}, {Query: "q"}, {Header: "y"}}}
		}
	}
	table := compile(f, c)
	f.Add("GET", "a.b", "/abc/A?q=1", "1", "c=1; d")
	f.Add("CONNECT", "x.c:1", "", "", "\"")
	f.Add("POST", "", "/", "a b", ";=;c=\"")
	f.Fuzz(func(t *testing.T, method, authority, path, x, cookie string) {
		r := &message.Request{}
		r.Reset()
		r.Method, r.Authority, r.Path = method, authority, path
		r.Header.Add("x", x)
		r.Header.Add("x", "2")
		r.Header.Add("cookie", cookie)
		m := table.Match(&route.Facts{Request: r})
		ascii := strings.IndexFunc(authority+path, func(c rune) bool { return c > 0x7f }) < 0
		if host, name := naive(c, r, 0); ascii && m.Route != nil && (m.Route.Name != name || m.VirtualHost.Name != host) {
			t.Errorf("found %q in %q, want %q in %q", m.Route.Name, m.VirtualHost.Name, name, host)
		} else if ascii && m.Route == nil && name != "" {
			t.Errorf("found nothing, want %q in %q", name, host)
		}
		m.Hash(r, netip.Addr{}, nil, nil)
		m.Rewrite(r, "")
		if m.Route != nil && r.Path != "" && r.Path[0] != '/' {
			t.Errorf("%q became %q", path, r.Path)
		}
		if r.Authority != authority && strings.ContainsAny(r.Authority, " /\r\n") {
			t.Errorf("authority %q", r.Authority)
		}
	})
}
