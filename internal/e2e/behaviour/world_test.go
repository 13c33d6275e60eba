package behaviour

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sarnmesh/sarn/internal/testkit"
)

var (
	proxies = flag.String("proxy", "both", "which proxy to run: both, envoy or sarn")
	update  = flag.Bool("update", false, "write what the proxies do to testdata")
	keep    = flag.String("keep", "", "folder to keep bootstrap files and logs of proxies in")
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// A world is a running proxy with upstreams around it.
type world struct {
	kind  string // envoy or sarn
	dir   string
	log   string
	ports map[string]int
	vars  map[string]string // what {{name}} stands for in a group's YAML and requests
	keys  *keys

	without map[string]bool // listeners that the proxy does not take

	mu     sync.Mutex
	cases  map[string]*testCase
	count  map[string]int      // requests of a case that upstreams got
	seen   map[string][]string // what they got, by case
	owners map[string]string   // slugs by client address
	hide   map[string]string   // what stands in transcripts for texts that differ between runs
}

// expand replaces {{name}}.
func (w *world) expand(s string) string {
	for k, v := range w.vars {
		s = strings.ReplaceAll(s, "{{"+k+"}}", v)
	}
	return s
}

func (w *world) mine(addr, slug string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owners[addr] = slug
}

// next returns the answer to a case's next request.
func (w *world) next(slug, upstream string) answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.cases[slug]
	if c != nil && upstream == "c" && c.upC != nil {
		return c.upC[0]
	}
	if c == nil || len(c.up) == 0 {
		return ok
	}
	n := w.count[slug]
	w.count[slug]++
	return c.up[min(n, len(c.up)-1)]
}

func (w *world) record(slug, name string, r *received) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[slug] = append(w.seen[slug], name+": "+r.String())
}

// names of upstreams: servers, a port where nobody listens, one where nobody accepts.
var upstreams = []string{"a", "b", "c"}

func newWorld(t *testing.T, kind string, g *group) *world {
	dir := t.TempDir()
	if *keep != "" {
		dir = filepath.Join(*keep, kind, g.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{
		kind: kind, dir: dir, log: filepath.Join(dir, "access.log"), ports: map[string]int{}, vars: map[string]string{},
		cases: map[string]*testCase{}, count: map[string]int{}, seen: map[string][]string{}, owners: map[string]string{}, hide: map[string]string{},
	}
	os.Remove(w.log)
	for _, name := range upstreams {
		u := newUpstream(name, w)
		t.Cleanup(u.close)
		w.ports[name] = u.port()
	}
	w.ports["silent"] = silent(t)
	w.keys = newKeys(t, w)
	for name, start := range stands {
		w.ports[name] = start(t, w)
	}
	names := []string{"refused", "admin"}
	for _, l := range append([]listener{{}}, g.listeners...) {
		if n := "l" + l.name; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	free, err := testkit.FreePorts(len(names))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range free {
		w.ports[names[i]] = p
	}
	w.vars["dir"], w.vars["log"], w.vars["format"] = dir, w.log, strings.TrimSuffix(logFormat, "\n")+`\n`
	for name, port := range w.ports {
		w.vars[name] = strconv.Itoa(port)
		w.hide["127.0.0.1:"+strconv.Itoa(port)] = name
		w.hide["127.0.0.1_"+strconv.Itoa(port)] = name
		w.hide["x-forwarded-port: "+strconv.Itoa(port)] = "x-forwarded-port: of " + name
	}
	return w
}

// silent is a port where connections are never established, its queue being full.
func silent(t *testing.T) int {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*syscall.SockaddrInet4).Port
	for range 3 {
		if c, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), 50*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return port
}

// built is the folder of the binary that was built for the tests; empty if none was.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

var sarnOnce = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("SARN_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "sarn-behaviour-")
	if err != nil {
		return "", err
	}
	built = dir
	bin := filepath.Join(dir, "sarn")
	cmd := exec.Command("go", "build", "-o", bin, "github.com/sarnmesh/sarn")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
})

func envoyPath() (string, error) {
	dir := os.Getenv("SARN_TOOLS")
	if dir == "" {
		dir, _ = filepath.Abs("../../../.tools")
	}
	path := filepath.Join(dir, "envoy")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("no Envoy: run `make tools`: %w", err)
	}
	return path, nil
}

// errNoProxy says that there is none to be started.
var errNoProxy = errors.New("no proxy")

// A process is a running proxy.
type process struct {
	cmd  *exec.Cmd
	out  string
	done chan struct{}
}

func (p *process) end() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// start runs the proxy with a bootstrap file until it is ready; the error tells why it does not get there.
func (w *world) start(conf []byte) (*process, error) {
	file := filepath.Join(w.dir, "bootstrap.yaml")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return nil, err
	}
	var argv []string
	var bin string
	var err error
	switch w.kind {
	case "envoy":
		bin, err = envoyPath()
		argv = []string{"-c", file, "--disable-hot-restart", "--concurrency", "1", "--file-flush-interval-msec", "20", "--log-level", "warn"}
	default:
		bin, err = sarnOnce()
		argv = []string{"connect", "proxy", "-bootstrap", file, "-drain-time", "1ms"}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoProxy, err)
	}
	p := &process{cmd: exec.Command(bin, argv...), out: filepath.Join(w.dir, "proxy.log"), done: make(chan struct{})}
	f, err := os.Create(p.out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-p.done:
			b, _ := os.ReadFile(p.out)
			return nil, fmt.Errorf("the proxy does not start:\n%s", complaint(string(b)))
		default:
		}
		if resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(w.ports["admin"]) + "/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return p, nil
			}
		}
	}
	p.end()
	b, _ := os.ReadFile(p.out)
	return nil, fmt.Errorf("the proxy is not ready after 20s:\n%s", tail(string(b), 12))
}

// complaint is what a proxy said that ended by itself.
func complaint(out string) string {
	if i := strings.Index(out, "panic: "); i >= 0 {
		l := strings.Split(out[i:], "\n")
		return strings.Join(l[:min(len(l), 14)], "\n")
	}
	return tail(out, 12)
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-lines):], "\n")
}

var (
	uuid      = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	millis    = regexp.MustCompile(`((?i:x-envoy-upstream-service-time): )\d+`)
	remaining = regexp.MustCompile(`(x-envoy-expected-rq-timeout-ms: )(\d+)`)
	partial   = regexp.MustCompile(`^1[0-4]\d{3}$|[1-9]$`) // less than the usual 15 s, or nothing that a case says
	peerPort  = regexp.MustCompile(`127\.0\.0\.1:\d+`)
)

// own is the machine's address. Envoy puts it in place of a peer on the loopback interface into x-forwarded-for, which
// only a test would notice.
var own = func() string {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	return ""
}()

// normal takes out of a transcript what differs between runs.
func (w *world) normal(s string) string {
	s = uuid.ReplaceAllString(s, "<uuid>")
	s = millis.ReplaceAllString(s, "${1}<ms>")
	for _, k := range slices.SortedFunc(maps.Keys(w.hide), func(a, b string) int { return cmp.Compare(len(b), len(a)) }) {
		s = strings.ReplaceAll(s, k, "<"+w.hide[k]+">")
	}
	if own != "" {
		s = strings.ReplaceAll(s, own, "127.0.0.1")
	}
	return peerPort.ReplaceAllString(s, "127.0.0.1:<port>")
}

// run starts the proxy and returns what came of each case, by slug.
func run(t *testing.T, kind string, g *group, cases []*testCase) (results map[string]string, failures map[string]string) {
	w := newWorld(t, kind, g)
	failures = map[string]string{}
	p, err := w.start(bootstrap(g, cases, w))
	if errors.Is(err, errNoProxy) {
		t.Errorf("%s: %v", kind, err)
		for _, c := range cases {
			failures[c.slug()] = "no proxy"
		}
		return nil, failures
	}
	if err != nil {
		// Which listeners and which cases does the proxy not take?
		base := err
		refused := map[string]error{}
		for _, l := range g.defs() {
			w.without = map[string]bool{}
			for _, other := range g.defs() {
				w.without[other.name] = other.name != l.name
			}
			if err := w.try(bootstrap(g, nil, w)); err != nil {
				refused[l.name] = err
				t.Errorf("%s: listener %q: %v", kind, l.name, err)
			}
		}
		w.without = map[string]bool{}
		for name := range refused {
			w.without[name] = true
		}
		var good []*testCase
		for _, c := range cases {
			var err error
			for i, l := range g.defs() {
				if c.listens(i, l) {
					err = refused[l.name]
				}
			}
			if err != nil {
				err = errors.New("the proxy does not take its listener")
			} else {
				err = w.try(bootstrap(g, []*testCase{c}, w))
			}
			if err != nil {
				failures[c.slug()] = fmt.Sprint(err)
			} else {
				good = append(good, c)
			}
		}
		if p, err = w.start(bootstrap(g, good, w)); err != nil {
			t.Errorf("%s: %v", kind, base)
			for _, c := range cases {
				failures[c.slug()] = "the proxy does not start"
			}
			return nil, failures
		}
		cases = good
	}
	stopped := false
	defer func() {
		if !stopped {
			p.end()
		}
	}()
	said := map[string]string{}
	for _, c := range cases {
		w.cases[c.slug()] = c
	}
	for _, c := range cases {
		cl := &client{c: c, w: w, port: w.ports["l"+c.on]}
		if c.on == "" && len(g.listeners) > 0 {
			cl.port = w.ports["l"+g.listeners[0].name]
		}
		began := time.Now()
		c.do(cl)
		if d := time.Since(began); d > time.Second {
			t.Logf("%s: %s took %v", kind, c.slug(), d.Round(10*time.Millisecond))
		}
		cl.hangUp()
		said[c.slug()] = cl.out.String()
	}
	if g.stats != "" {
		said["stats"] = w.stats(g.stats)
	}
	// Lines are written when streams end, which is a moment after clients saw the end.
	time.Sleep(150 * time.Millisecond)
	p.end()
	stopped = true
	b, _ := os.ReadFile(p.out)
	if out := string(b); strings.Contains(out, "panic:") || strings.Contains(out, "[critical]") {
		t.Errorf("%s:\n%s", kind, complaint(out))
	}
	lines := w.accessLog()
	results = map[string]string{}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range cases {
		var b strings.Builder
		b.WriteString(said[c.slug()])
		seen := w.seen[c.slug()]
		if c.sorted {
			slices.Sort(seen)
		}
		for i, s := range seen {
			if c.noUp {
				break
			}
			if m := remaining.FindStringSubmatch(s); i > 0 || m != nil && partial.MatchString(m[2]) { // what is left of the time is another in each run
				s = remaining.ReplaceAllString(s, "${1}<remaining>")
				if i > 0 && s == remaining.ReplaceAllString(seen[i-1], "${1}<remaining>") {
					s = s[:strings.Index(s, "\n")] + " (the same)\n"
				}
			}
			b.WriteString(s)
		}
		if !c.noLog {
			mine := lines[c.slug()]
			if c.sorted {
				slices.Sort(mine)
			}
			for _, l := range mine {
				b.WriteString("log: " + l + "\n")
			}
		}
		results[c.slug()] = w.normal(b.String())
	}
	if s := w.seen[""]; len(s) > 0 {
		results["stray"] = w.normal(strings.Join(s, ""))
	}
	if s, ok := said["stats"]; ok {
		results["stats"] = w.normal(s)
	}
	return results, failures
}

// try tells whether the proxy starts.
func (w *world) try(conf []byte) error {
	p, err := w.start(conf)
	if err != nil {
		return err
	}
	p.end()
	return nil
}

// accessLog returns the lines of each case.
func (w *world) accessLog() map[string][]string {
	f, err := os.Open(w.log)
	if err != nil {
		return nil // no listener has one
	}
	defer f.Close()
	out := map[string][]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		addr, rest, _ := strings.Cut(s.Text(), " ")
		w.mu.Lock()
		slug := w.owners[addr]
		w.mu.Unlock()
		out[slug] = append(out[slug], rest)
	}
	return out
}

// stats returns the counters whose names match.
func (w *world) stats(expr string) string {
	resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(w.ports["admin"]) + "/stats?usedonly&type=Counters")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	re := regexp.MustCompile(expr)
	var out []string
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if name, v, _ := strings.Cut(s.Text(), ": "); v != "0" && re.MatchString(name) {
			out = append(out, s.Text())
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

// golden is what is known of a group: by slug, and by slug and " (sarn)" where Sarn differs.
func golden(t *testing.T, g *group) (path string, sections map[string]string) {
	path = filepath.Join("testdata", g.name+".txtar")
	sections = map[string]string{}
	a, err := txtar.ParseFile(path)
	if err != nil {
		if !*update {
			t.Fatal(err)
		}
		return path, sections
	}
	for _, f := range a.Files {
		sections[f.Name] = string(f.Data)
	}
	return path, sections
}

// TestDifferencesAreDocumented holds the reasons for differences against the page of the manual that lists them.
func TestDifferencesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../website/docs/proxy-and-envoy.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	missing := map[string]bool{}
	for _, e := range everywhere {
		missing[e.why] = !strings.Contains(text, e.why)
	}
	for _, g := range groups {
		for _, c := range append(g.cases, testCase{differs: g.statsDiffer}) {
			if c.differs != "" {
				missing[c.differs] = !strings.Contains(text, c.differs)
			}
		}
	}
	for _, why := range sortedKeys(missing) {
		if missing[why] {
			t.Errorf("the page does not say: %s", why)
		}
	}
}

func TestBehaviour(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes")
	}
	names := map[string]bool{}
	for _, g := range groups {
		if names[g.name] {
			t.Fatalf("two groups %s", g.name)
		}
		names[g.name] = true
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			g.test(t)
		})
	}
}

func (g *group) test(t *testing.T) {
	cases := []*testCase{}
	slugs := map[string]bool{"stats": true, "stray": true}
	for i := range g.cases {
		c := &g.cases[i]
		if slugs[c.slug()] {
			t.Fatalf("two cases %q", c.slug())
		}
		slugs[c.slug()] = true
		cases = append(cases, c)
	}
	path, want := golden(t, g)
	got := map[string]map[string]string{}
	failed := map[string]map[string]string{}
	var wg sync.WaitGroup
	var mu sync.Mutex
	besides.RLock()
	for _, kind := range []string{"envoy", "sarn"} {
		if *proxies == kind || *proxies == "both" {
			wg.Go(func() {
				r, f := run(t, kind, g, cases)
				mu.Lock()
				got[kind], failed[kind] = r, f
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	besides.RUnlock()
	all := append(slices.Clone(cases), &testCase{name: "stray"}, &testCase{name: "stats", differs: g.statsDiffer})
	if *update {
		for kind, m := range failed {
			for slug, why := range m {
				t.Errorf("%s: %s: %s", kind, slug, why)
			}
		}
		g.write(t, path, all, got, want)
		return
	}
	compare := func(kind string, c *testCase) (expected, found string) {
		expected = want[c.slug()]
		if kind == "sarn" && c.differs != "" {
			expected = want[c.slug()+" (sarn)"]
		}
		return alike(expected), alike(got[kind][c.slug()])
	}
	for _, kind := range sortedKeys(got) {
		g.again(t, kind, cases, all, got[kind], func(c *testCase) bool {
			expected, found := compare(kind, c)
			return failed[kind][c.slug()] == "" && expected != found
		})
	}
	for _, c := range all {
		t.Run(c.slug(), func(t *testing.T) {
			for _, kind := range sortedKeys(got) {
				if why := failed[kind][c.slug()]; why != "" {
					t.Errorf("%s: %s", kind, why)
					continue
				}
				if kind == "sarn" && want[c.slug()+" (sarn)"] != "" && c.differs == "" {
					t.Errorf("an answer of Sarn's own, and no reason")
				}
				if expected, found := compare(kind, c); expected != found {
					t.Errorf("%s (-want +got):\n%s", kind, diff(strings.Split(expected, "\n"), strings.Split(found, "\n")))
				}
			}
		})
	}
}

// besides is held for reading by groups that run beside others.
var besides sync.RWMutex

// again runs the group once more, with the machine to itself, if anything of it differs: cases have times of a tenth of a
// second, which a proxy beside others can miss. What differed is replaced by what comes then.
func (g *group) again(t *testing.T, kind string, cases, all []*testCase, got map[string]string, differs func(*testCase) bool) {
	late := slices.DeleteFunc(slices.Clone(all), func(c *testCase) bool { return !differs(c) })
	if len(late) == 0 || got == nil {
		return
	}
	besides.Lock()
	defer besides.Unlock()
	now, _ := run(t, kind, g, cases)
	for _, c := range late {
		t.Logf("%s: %s differed beside others:\n%s", kind, c.slug(), got[c.slug()])
		if text, ok := now[c.slug()]; ok {
			got[c.slug()] = text
		} else {
			delete(got, c.slug())
		}
	}
}

// diff returns the lines of two texts that are in one of them alone, each with the line of status before it.
func diff(a, b []string) string {
	common := make([][]int, len(a)+1) // the longest common part of what is left
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if common[i][j] = max(common[i+1][j], common[i][j+1]); a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			}
		}
	}
	var out strings.Builder
	head, said := "", true
	say := func(mark, line string) {
		if !said {
			fmt.Fprintf(&out, "  %s\n", head)
			said = true
		}
		fmt.Fprintf(&out, "%s %s\n", mark, line)
	}
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			if !strings.HasPrefix(a[i], "<  ") && !strings.HasPrefix(a[i], "  ") {
				head, said = a[i], false
			}
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			say("-", a[i])
			i++
		default:
			say("+", b[j])
			j++
		}
	}
	return out.String()
}

// Why some cases differ.
const (
	apartFields       = "fields of one name stay apart, where Envoy joins those that it knows (RFC 9110 section 5.3 gives both one meaning)"
	noAuthority       = "a request without an authority is answered, and the connection stays for others"
	otherHost         = "a host field that is not the authority is refused: the two could lead to different places"
	trimmed           = "spaces around a value mean nothing and are left out"
	answeredTooLarge  = "a request of HTTP/2 with too many or too large fields gets 431 or ENHANCE_YOUR_CALM, which say what is wrong"
	noFramingForHead  = "an answer to HEAD says nothing of a chunked body, which is not there"
	earlyHints        = "103 Early Hints is passed on"
	noEmptyLength     = "a request without a body says so with a length only where its method expects one (RFC 9110 section 8.6)"
	tunnelEnds        = "a tunnel that the host ends is ended, not reset"
	cutOff            = "a connection that ends within a message is a termination (UC), not a protocol error"
	oneMore           = "a connection whose time is over serves the next request and says that it is the last"
	lastResort        = "a host that is out for failed connections is tried when nobody else is left"
	anyMethod         = "methods are whatever clients and servers agree on: those that nobody knows are passed on (RFC 9110 section 9.1)"
	halfClosed        = "a client that has closed its own side is still answered"
	noLineForNothing  = "a connection on which no request has begun has no line in the log of requests"
	queryOrder        = "query parameters keep their order when one is changed, where Envoy sorts them"
	unreadBody        = "an answer that comes before the body of a request of HTTP/1 was read ends the connection"
	noTokenInRealm    = "a challenge does not repeat the query, which can hold a token"
	cookieRemoved     = "a token that is not forwarded is taken out of cookies, too"
	headerTwice       = "a header in several fields fits a rule of RBAC as one value, and what counts against the client is looked for in each field, too"
	unknownSize       = "an authorization service is told -1 for a size that is not known, as its interface says"
	authzType         = "what an authorization service answers keeps its content type"
	tokensKept        = "tokens that were verified are remembered until they expire"
	serverNameKnown   = "the server name that a client asked for is known without a tls_inspector"
	logKnowsMore      = "the log has the body of the proxy's own answers, and the address of a host that could not be reached"
	ownStatus         = "operators in headers know the status of the proxy's own answers"
	namedByConnection = "fields that Connection names go no further, in responses, too (RFC 9110 section 7.6.1)"
)

const backInTime = "an ejected host is back when its time is over, whether or not anybody asked for it meanwhile"

// everywhere lists in which respect Sarn differs in all cases, or Envoy from run to run.
var everywhere = []struct {
	why     string
	in      *regexp.Regexp
	instead string
}{
	{"a local answer has the number of its decision, which stands in the log", regexp.MustCompile(`(?m)^<   x-sarn-decision: .*\n`), ""},
	{"the log names the rule of HTTP/1 that was broken, where Envoy mostly says codec_error", regexp.MustCompile(`DPE http1?\.\w+`), "DPE http"},
	{"the log names the rule of HTTP/2 that was broken, where Envoy mostly says invalid.header.field", regexp.MustCompile(`DPE (?:http2\.[\w.]+|codec_error:\S+)`), "DPE http2"},
	{"names of protocols to switch to are written in lower case (RFC 9110 section 7.8 does not look at case)", regexp.MustCompile(`(?mi)^(  connection: upgrade|  upgrade: websocket)$`), "  switching"},
	{"a request of HTTP/2 that becomes WebSocket over HTTP/1 gets the key that RFC 6455 demands", regexp.MustCompile(`(?m)^  sec-websocket-key: .*\n`), ""},
	{"HTTP/2 connections end with the reason (RFC 9113 section 5.4.1), which Envoy mostly keeps to itself", regexp.MustCompile(`(?m)^< GOAWAY \w+\n`), ""},
	{"phrases beside a status mean nothing (RFC 9112 section 4)", regexp.MustCompile(`(?m)^(< HTTP/1\.\d \d+).*`), "$1"},
	{"each says in its own words why a connection failed", regexp.MustCompile(`(connection_failure\|)[^} ]+`), "$1…"},
	{"how much of a body that went nowhere was read by then is left to chance", regexp.MustCompile(`(host=(?:-|<refused>|<silent>) attempts=\d+| UO [^\n]*attempts=\d+) rx=\d+`), "$1"},
}

// alike takes out of a transcript in which respect Sarn always differs.
func alike(s string) string {
	for _, e := range everywhere {
		s = e.in.ReplaceAllString(s, e.instead)
	}
	// Requests of several connections end at the same time as far as a log can tell.
	lines := strings.SplitAfter(s, "\n")
	for i := 0; i < len(lines); i++ {
		from := i
		for i < len(lines) && strings.HasPrefix(lines[i], "log: ") {
			i++
		}
		slices.Sort(lines[from:i])
	}
	return strings.Join(lines, "")
}

// write keeps what came of the cases.
func (g *group) write(t *testing.T, path string, cases []*testCase, got map[string]map[string]string, old map[string]string) {
	a := &txtar.Archive{Comment: []byte("What Envoy does in the cases of this group; written by `go test -update -proxy envoy`.\n")}
	add := func(name, text string) {
		if text != "" {
			a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(text)})
		}
	}
	pick := func(kind, name, section string) string {
		if r := got[kind]; r != nil {
			return r[name]
		}
		return old[section]
	}
	for _, c := range cases {
		name := c.slug()
		add(name, pick("envoy", name, name))
		if c.differs != "" {
			add(name+" (sarn)", alike(pick("sarn", name, name+" (sarn)")))
		}
	}
	if err := os.WriteFile(path, bytes.TrimLeft(txtar.Format(a), "\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}
