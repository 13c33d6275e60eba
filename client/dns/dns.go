// Package dns answers DNS questions about the catalog: nodes, services, mesh-capable instances, gateways, prepared
// queries and addresses under one or two domains, reverse names, and everything else through recursors. The rules are in spec/dns.md.
package dns

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/span"
)

// A Source answers what the server needs to know of the catalog. With instances and nodes comes what tells whether they
// are still the same; nil when only asking again tells.
type Source interface {
	Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, Standing, error)
	Node(ctx context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, Standing, error)
	// Address finds who has an IP address: a node, else a service. Both may be absent.
	Address(ctx context.Context, req *catalog.AddressRequest) (*catalog.AddressReply, error)
	// Query executes a prepared query. It fills in what the request does not say of its origin.
	Query(ctx context.Context, req *query.ExecuteRequest) (*query.ExecuteReply, error)
	// Virtual returns the virtual IP of a service; peer is empty for local ones. The zero address means none.
	Virtual(ctx context.Context, o read.Options, service, peer string) (netip.Addr, error)
}

// A Standing tells whether a Source would still answer the same. Both methods wait for nobody and may be called at any
// time.
type Standing interface {
	Current() bool
	Close() // nobody will ask again
}

// Settings are what may change while the server runs. Zero values are the strictest; Defaults gives the usual ones.
type Settings struct {
	AllowStale         bool
	MaxStale           time.Duration // 0 means any age
	NodeTTL            time.Duration
	ServiceTTL         map[string]time.Duration // by name, or by prefix when the key ends in '*'
	OnlyPassing        bool                     // leave out instances with a warning too
	UDPAnswerLimit     int                      // of answers without a larger EDNS0 size; 0 leaves only the size
	UDPAnswerRate      int                      // answers a second to a network that is not trusted; 0 does not limit
	TrustedNetworks    []netip.Prefix           // beside this machine
	AllowRecursionFrom []netip.Prefix           // who may use the recursors, beside this machine; empty lets everybody
	ARecordLimit       int                      // of address records in a service answer; 0 means all
	EnableTruncate     bool                     // set TC when answers were cut
	DisableCompression bool
	NodeMetaTXT        bool // node meta in the additional section
	SOARefresh         uint32
	SOARetry           uint32
	SOAExpire          uint32
	SOAMinTTL          uint32
	Recursors          []string // host:port
	RandomRecursor     bool     // ask them in a random order
	RecursorTimeout    time.Duration
	TranslateWAN       bool
	UseCache           bool          // any answer known here serves, whatever AllowStale says
	CacheMaxAge        time.Duration // of such answers; 0 means any age
}

// Defaults returns the settings of an agent that configures none.
func Defaults() Settings {
	return Settings{
		AllowStale: true, MaxStale: 87600 * time.Hour, UDPAnswerLimit: 3, UDPAnswerRate: 200, TrustedNetworks: TrustedNetworks(), NodeMetaTXT: true,
		SOARefresh: 3600, SOARetry: 600, SOAExpire: 86400, RecursorTimeout: 2 * time.Second,
	}
}

// Config makes a Server.
type Config struct {
	Domain     string // default "consul."
	AltDomain  string // empty for none
	Datacenter string
	Node       string // this agent's, a label of metrics
	Source     Source
	// Token returns the secret questions are asked with; nil means the anonymous token.
	Token func() string
	// Exchange asks a recursor over "udp" or "tcp"; nil uses the network.
	Exchange func(ctx context.Context, network, addr string, m *dns.Msg) (*dns.Msg, error)
	Logger   hclog.Logger // nil discards
	Tracer   *span.Tracer // records questions that are answered by more than the answers kept; nil records none
	Settings Settings
}

// A Server answers questions. It is safe for concurrent use.
type Server struct {
	cfg      Config
	zones    []string // lower case, ending in a dot
	settings atomic.Pointer[Settings]
	log      hclog.Logger

	kept   *keeper
	rates  *rates
	told   atomic.Int64 // when a question was last said to have failed badly, in Unix nanoseconds
	counts counts

	lookups, recursions             chan struct{} // a token for each under way over UDP or gRPC
	streamLookups, streamRecursions chan struct{} // and over TCP
}

// New returns a server. Nothing happens until Run or Answer.
func New(cfg Config) *Server {
	if cfg.Domain == "" {
		cfg.Domain = "consul."
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Exchange == nil {
		cfg.Exchange = exchange
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, zones: []string{strings.ToLower(dns.Fqdn(cfg.Domain))},
		kept: newKeeper(), rates: newRates(), lookups: make(chan struct{}, maxLookups), recursions: make(chan struct{}, maxRecursions),
		streamLookups: make(chan struct{}, maxLookups), streamRecursions: make(chan struct{}, maxRecursions),
	}
	if cfg.AltDomain != "" {
		s.zones = append(s.zones, strings.ToLower(dns.Fqdn(cfg.AltDomain)))
	}
	s.Update(cfg.Settings)
	return s
}

// Update replaces the settings; questions being answered keep the old ones.
func (s *Server) Update(settings Settings) {
	ttls := make(map[string]time.Duration, len(settings.ServiceTTL))
	for name, ttl := range settings.ServiceTTL {
		ttls[strings.ToLower(name)] = ttl
	}
	settings.ServiceTTL = ttls
	s.settings.Store(&settings)
	s.kept.clear()
}

func exchange(ctx context.Context, network, addr string, m *dns.Msg) (*dns.Msg, error) {
	c := &dns.Client{Net: network, UDPSize: dns.MaxMsgSize}
	if deadline, ok := ctx.Deadline(); ok {
		c.Timeout = time.Until(deadline)
	}
	resp, _, err := c.ExchangeContext(ctx, m, addr)
	return resp, err
}

// Run serves questions from the listeners until ctx ends, then closes them and returns nil. Either may be empty.
func (s *Server) Run(ctx context.Context, packets []net.PacketConn, streams []net.Listener) error {
	group, inner := errgroup.WithContext(ctx)
	var under sync.WaitGroup // answers that take longer
	for _, p := range packets {
		group.Go(func() error { return s.servePackets(inner, p, under.Go) })
		group.Go(func() error {
			<-inner.Done()
			p.Close()
			return nil
		})
	}
	conns := connLimit{total: tcpMaxConns, perIP: tcpMaxPerIP}
	for _, l := range streams {
		group.Go(func() error { return s.serveStreams(inner, l, &conns) })
		group.Go(func() error {
			<-inner.Done()
			l.Close()
			return nil
		})
	}
	group.Go(func() error { return s.report(inner) })
	err := group.Wait()
	under.Wait()
	s.kept.clear()
	return err
}

// An asker is who asks a question, and how.
type asker struct {
	from    netip.AddrPort // the zero address when it is not known
	token   string         // with which the catalog is asked
	tcp     bool
	strange bool // what is answered over UDP is limited
}

// udp returns who asks over UDP.
func (s *Server) udp(st *Settings, from netip.AddrPort, token string) asker {
	return asker{from: from, token: token, strange: st.strange(from.Addr())}
}

// packed answers a question and packs the answer, nil for what deserves none. Key is the question as it was packed, under
// which the answer is kept if it may be; nil keeps nothing. A question that cannot be answered for a fault of this program
// gets SERVFAIL: it must not end the process. Ours tells an answer of our own from one of a recursor.
func (s *Server) packed(ctx context.Context, who asker, req *dns.Msg, key []byte) (out []byte, ours bool) {
	failed := func() []byte {
		out, _ := withCode(req, dns.RcodeServerFailure).Pack()
		return out
	}
	defer func() {
		if p := recover(); p != nil {
			s.fault(p, who.from)
			out, ours = failed(), true
		}
	}()
	began := time.Now()
	ctx, asked := s.begin(ctx, req, who.tcp)
	resp, k, ours := s.answer(ctx, who, req, key)
	finish(asked, resp)
	if resp == nil {
		return nil, true
	}
	if k != nil {
		s.kept.put(key, k)
	}
	out, err := resp.Pack()
	if err != nil {
		s.log.Debug("answer not packed", "error", err)
		out, ours = failed(), true
	}
	s.logAnswer(req, who.from, began)
	return out, ours
}

// withCode is an answer without records, but for the OPT record that belongs to one in the question (RFC 6891, section 6.1.1).
func withCode(req *dns.Msg, rcode int) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetRcode(req, rcode)
	if opt := req.IsEdns0(); opt != nil {
		resp.SetEdns0(opt.UDPSize(), false)
	}
	return resp
}

// unpack reads a question. A fault of the reader is an error too.
func (s *Server) unpack(msg []byte, from netip.AddrPort) (req *dns.Msg, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.fault(p, from)
			err = errors.New("the question cannot be read")
		}
	}()
	req = new(dns.Msg)
	return req, req.Unpack(msg)
}

// faultEvery is how often a fault is told of at most: whoever finds one must not fill the log.
const faultEvery = time.Second

// fault tells of a question that could not be answered for a fault of this program.
func (s *Server) fault(p any, from netip.AddrPort) {
	now, last := time.Now().UnixNano(), s.told.Load()
	if now-last < int64(faultEvery) || !s.told.CompareAndSwap(last, now) {
		return
	}
	s.log.Error("a question could not be answered", "panic", p, "client", from, "stack", string(debug.Stack()))
}

// logAnswer says what was asked.
func (s *Server) logAnswer(req *dns.Msg, from netip.AddrPort, began time.Time) {
	if s.log.IsDebug() && len(req.Question) == 1 {
		q := req.Question[0]
		s.log.Debug("question answered", "name", q.Name, "type", dns.Type(q.Qtype), "class", dns.Class(q.Qclass), "latency", time.Since(began), "client", from)
	}
}

// logPacked is logAnswer for a packed question.
func (s *Server) logPacked(msg []byte, from netip.AddrPort, began time.Time) {
	if req := new(dns.Msg); req.Unpack(msg) == nil {
		s.logAnswer(req, from, began)
	}
}

// Answer is AnswerTo for a client whose address is not known.
func (s *Server) Answer(ctx context.Context, req *dns.Msg, tcp bool) *dns.Msg {
	return s.AnswerTo(ctx, netip.Addr{}, req, tcp)
}

// AnswerTo returns the answer to req, fit for the transport it came over. It returns nil for what deserves none: a
// message that is itself an answer. The client's address matters to prepared queries, and to who gets how much.
func (s *Server) AnswerTo(ctx context.Context, client netip.Addr, req *dns.Msg, tcp bool) *dns.Msg {
	who := s.udp(s.settings.Load(), netip.AddrPortFrom(client.Unmap(), 0), s.token())
	who.tcp, who.strange = tcp, who.strange && !tcp
	resp, _, _ := s.answer(ctx, who, req, nil)
	return resp
}

// answer is AnswerTo, and returns the answer to be kept as well if there is one. Question is the one that req asks, as it
// was packed; nil keeps nothing. Ours tells an answer of our own from one of a recursor.
func (s *Server) answer(ctx context.Context, who asker, req *dns.Msg, question []byte) (resp *dns.Msg, k *kept, ours bool) {
	if req.Response {
		return nil, nil, true
	}
	st := s.settings.Load()
	switch opts := optRecords(req); {
	case req.Opcode != dns.OpcodeQuery:
		return withCode(req, dns.RcodeNotImplemented), nil, true
	case len(req.Question) != 1, opts > 1: // RFC 6891, section 6.1.1
		resp = new(dns.Msg)
		return resp.SetRcode(req, dns.RcodeFormatError), nil, true
	case opts == 1 && req.IsEdns0().Version() != 0: // section 6.1.3
		return withCode(req, dns.RcodeBadVers), nil, true
	}
	resp = new(dns.Msg)
	resp.SetReply(req)
	resp.RecursionAvailable = len(st.Recursors) > 0
	q := req.Question[0]
	zone, inZone := s.zone(q.Name)
	reverse := !inZone && isReverse(q.Name)
	l := &lookup{Server: s, st: st, ctx: ctx, question: q, zone: zone, resp: resp, token: who.token, edns: req.IsEdns0() != nil}
	began := time.Now()
	defer func() {
		if k == nil {
			l.close()
		}
	}()
	switch {
	case (inZone || reverse) && q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY: // there is one class of names here
		resp.RecursionAvailable = false
		resp.Rcode = dns.RcodeRefused
	case inZone:
		resp.Authoritative = true
		l.client = who.from.Addr()
		if subnet := clientSubnet(req); subnet != nil && subnet.SourceNetmask > 0 { // else it is not to be told on whose behalf
			l.client, _ = netip.AddrFromSlice(subnet.Address)
		}
		l.zoneQuestion()
		if question != nil {
			k = l.keep(question)
		}
		s.counts.zone(q.Qtype, time.Since(began))
	case reverse:
		resp.Authoritative = true
		l.zone = s.zones[0]
		known := l.reverse()
		s.counts.arpa.add(time.Since(began))
		if !known && len(st.Recursors) > 0 && st.mayRecurse(who.from.Addr()) {
			return s.recurse(ctx, st, who, req), nil, false
		}
	case len(st.Recursors) > 0 && st.mayRecurse(who.from.Addr()):
		return s.recurse(ctx, st, who, req), nil, false
	default:
		resp.RecursionAvailable = false
		resp.Rcode = dns.RcodeRefused
	}
	s.fit(st, who, req, resp, l.scoped)
	return resp, k, true
}

// token returns the secret that questions are asked with.
func (s *Server) token() string {
	if s.cfg.Token == nil {
		return ""
	}
	return s.cfg.Token()
}

// optRecords counts the OPT records of a message.
func optRecords(m *dns.Msg) (n int) {
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// clientSubnet returns the option that tells on whose behalf a question is asked, nil if there is none.
func clientSubnet(req *dns.Msg) *dns.EDNS0_SUBNET {
	opt := req.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if subnet, ok := o.(*dns.EDNS0_SUBNET); ok {
			return subnet
		}
	}
	return nil
}

// zone returns the end of name that is one of the server's zones, in name's own case.
func (s *Server) zone(name string) (string, bool) {
	for _, zone := range s.zones {
		at := len(name) - len(zone)
		if at >= 0 && strings.EqualFold(name[at:], zone) && (at == 0 || name[at-1] == '.' && !escaped(name, at-1)) {
			return name[at:], true
		}
	}
	return "", false
}

// ours reports whether a message asks about one of the zones.
func (s *Server) ours(req *dns.Msg) bool {
	if len(req.Question) != 1 {
		return false
	}
	_, ours := s.zone(req.Question[0].Name)
	return ours
}

// recurse passes a question on, unchanged, to the recursors one after another.
func (s *Server) recurse(ctx context.Context, st *Settings, who asker, req *dns.Msg) *dns.Msg {
	if s.limited(st, who, limitRecursor, time.Now()) {
		resp := short(req)
		resp.RecursionAvailable = true
		return resp
	}
	network := "udp"
	if who.tcp {
		network = "tcp"
	}
	resp, err := s.ask(ctx, st, network, req)
	if err != nil {
		s.log.Warn("no recursor answered", "name", req.Question[0].Name, "error", err)
		resp = withCode(req, dns.RcodeServerFailure)
		resp.RecursionAvailable = true
		return resp
	}
	resp.Compress = !st.DisableCompression
	if who.strange && resp.Len() > strangeSize {
		resp = short(req)
		resp.RecursionAvailable = true
	}
	return resp
}

// ask returns the first NOERROR or NXDOMAIN answer of a recursor.
func (s *Server) ask(ctx context.Context, st *Settings, network string, req *dns.Msg) (*dns.Msg, error) {
	order := st.Recursors
	if st.RandomRecursor {
		order = append([]string(nil), order...)
		rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	var errs []error
	for _, addr := range order {
		one, cancel := context.WithTimeout(ctx, st.RecursorTimeout)
		resp, err := s.cfg.Exchange(one, network, addr, req)
		cancel()
		switch {
		case err != nil:
			errs = append(errs, err)
		case resp.Rcode == dns.RcodeSuccess || resp.Rcode == dns.RcodeNameError:
			return resp, nil
		default:
			errs = append(errs, errors.New(addr+" answered "+dns.RcodeToString[resp.Rcode]))
		}
	}
	return nil, errors.Join(errs...)
}

// Bounds of answers: spec/dns.md section 8.
const (
	maxUDPLimit   = 8
	maxTCPAnswers = 4096
	maxTCPSRV     = 1024
	maxEDNSSize   = 65467
	maxTCPSize    = 65535
)

// fit cuts the answer to what the client can take and adds the OPT record. A scoped answer is one for the client's
// subnet alone.
func (s *Server) fit(st *Settings, who asker, req, resp *dns.Msg, scoped bool) {
	resp.Compress = !st.DisableCompression
	room := roomFor(who, false, 0)
	if opt := req.IsEdns0(); opt != nil {
		room = roomFor(who, true, opt.UDPSize())
		reply := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		reply.SetUDPSize(opt.UDPSize())
		if subnet := clientSubnet(req); subnet != nil {
			echo := *subnet
			echo.SourceScope = 0
			if scoped {
				echo.SourceScope = subnet.SourceNetmask
			}
			reply.Option = append(reply.Option, &echo)
		}
		resp.Extra = append(resp.Extra, reply)
	}
	before := len(resp.Answer)
	if limit := room.answers(st, req.Question[0].Qtype); before > limit {
		resp.Answer = resp.Answer[:limit]
		prune(resp)
	}
	if before <= 1 && len(resp.Extra) <= 1 {
		return // cannot be too long to matter, and there is nothing to cut
	}
	// Without EDNS0 the answer must fit uncompressed, as resolvers of that age expect.
	length := func() int {
		if room.plain {
			compress := resp.Compress
			resp.Compress = false
			defer func() { resp.Compress = compress }()
		}
		return resp.Len()
	}
	if length() > room.size {
		resp.Ns = nil
	}
	for len(resp.Answer) > 1 && length() > room.size {
		// Drop a share of the answers at a time: near the bound one by one.
		n := len(resp.Answer)
		resp.Answer = resp.Answer[:min(n-1, max(1, n*room.size/length()))]
		prune(resp)
	}
	if length() > room.size {
		var kept []dns.RR
		for _, rr := range resp.Extra {
			if rr.Header().Rrtype == dns.TypeOPT {
				kept = append(kept, rr)
			}
		}
		resp.Extra = kept
	}
	resp.Truncated = (st.EnableTruncate || room.less) && len(resp.Answer) < before
}

// prune keeps, of the additional section, what the remaining answers point to.
func prune(resp *dns.Msg) {
	wanted := map[string]bool{}
	for _, rr := range resp.Answer {
		switch rr := rr.(type) {
		case *dns.SRV:
			wanted[rr.Target] = true
		case *dns.CNAME:
			wanted[rr.Target] = true
		}
	}
	kept := resp.Extra[:0:0]
	for more := true; more; {
		more = false
		for _, rr := range resp.Extra {
			if c, ok := rr.(*dns.CNAME); ok && wanted[c.Hdr.Name] && !wanted[c.Target] {
				wanted[c.Target], more = true, true
			}
		}
	}
	for _, rr := range resp.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
			if wanted[rr.Header().Name] {
				kept = append(kept, rr)
			}
		case dns.TypeOPT:
			kept = append(kept, rr)
		}
	}
	resp.Extra = kept
}
