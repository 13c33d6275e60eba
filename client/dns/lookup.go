package dns

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// How far names given as addresses are followed.
const (
	maxDepth   = 3 // inside the zones
	maxChased  = 5 // records kept of a recursor's answer without EDNS0
	priority   = 1 // of every SRV record
	maxServers = 3 // in NS answers
)

// A lookup is one question in a zone of ours.
type lookup struct {
	*Server
	st       *Settings
	ctx      context.Context
	question dns.Question
	zone     string // the end of the question's name, in its own case
	depth    int
	token    string
	edns     bool       // the client knows EDNS0
	client   netip.Addr // on whose behalf the question is asked; the zero address when that is not known
	resp     *dns.Msg
	scoped   bool // the answer may be another for another client

	// What it takes to keep the answer.
	standings []Standing
	passing   bool     // it is not to be kept
	mixed     bool     // the order of the answer is random
	full      []dns.RR // address records before their limit
	glue      []extent // of each SRV answer, which part of the additional section belongs to its target
}

// An extent is a part of a section; those of the same target have the same.
type extent struct{ from, to int }

// rest notes what the answer rests on.
func (l *lookup) rest(s Standing, m *read.Meta) {
	if m != nil && m.LastContact > staleAfter && (l.st.AllowStale || l.st.UseCache) {
		l.counts.stale.Add(1)
	}
	if s == nil {
		l.passing = true
	} else {
		l.standings = append(l.standings, s)
	}
}

// close gives up what the answer rests on.
func (l *lookup) close() {
	for _, s := range l.standings {
		s.Close()
	}
	l.standings = nil
}

func (l *lookup) header(name string, rrtype uint16, ttl time.Duration) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
}

// zoneQuestion answers a question whose name lies in one of the zones.
func (l *lookup) zoneQuestion() {
	switch l.question.Qtype {
	case dns.TypeSOA:
		l.resp.Answer = append(l.resp.Answer, l.soa())
		l.resp.Ns, l.resp.Extra = l.nameServers()
		return
	case dns.TypeNS:
		l.resp.Answer, l.resp.Extra = l.nameServers()
		return
	case dns.TypeAXFR:
		l.resp.Rcode = dns.RcodeNotImplemented
		return
	}
	rest := strings.TrimSuffix(l.question.Name[:len(l.question.Name)-len(l.zone)], ".")
	s, ok := parseName(rest, l.question.Qtype)
	if !ok {
		l.missing()
		return
	}
	switch s.kind {
	case kindNode:
		l.node(s)
	case kindService:
		name, tag := s.service()
		if name == "" {
			l.missing()
			return
		}
		req := &catalog.InstancesRequest{Service: name, Peer: s.peer}
		if tag != "" {
			req.Tags = []string{tag}
		}
		l.service(s, req)
	case kindConnect:
		l.service(s, &catalog.InstancesRequest{Service: s.parts[len(s.parts)-1], Connect: true})
	case kindIngress:
		l.service(s, &catalog.InstancesRequest{Service: s.parts[len(s.parts)-1], Ingress: true})
	case kindVirtual:
		l.virtual(s)
	case kindQuery:
		l.query(s)
	case kindAddr:
		l.addr(s)
	default:
		l.missing()
	}
}

func (l *lookup) missing() {
	l.resp.Rcode = dns.RcodeNameError
	l.resp.Ns = append(l.resp.Ns, l.soa())
}

// failed answers for an error of the catalog.
func (l *lookup) failed(err error) {
	l.passing = true
	if errors.Is(err, wireerr.ErrNoDatacenter) || wireerr.Status(err) == http.StatusNotFound || strings.Contains(err.Error(), wireerr.ErrPermissionDenied.Error()) {
		l.missing()
		return
	}
	l.log.Warn("question not answered", "name", l.question.Name, "error", err)
	l.resp.Authoritative = false
	l.resp.Rcode = dns.RcodeServerFailure
}

// options are those of every read; dc is empty for the agent's own datacenter.
func (l *lookup) options(dc string) read.Options {
	o := read.Options{Target: read.Target{Datacenter: dc, Token: l.token}}
	switch {
	case l.st.UseCache:
		o.Mode, o.MaxStale = read.Stale, l.st.CacheMaxAge
	case l.st.AllowStale:
		o.Mode, o.MaxStale = read.Stale, l.st.MaxStale
	}
	return o
}

func (l *lookup) soa() dns.RR {
	apex := strings.ToLower(l.zone)
	return &dns.SOA{
		Hdr: l.header(apex, dns.TypeSOA, time.Duration(l.st.SOAMinTTL)*time.Second),
		Ns:  "ns." + apex, Mbox: "hostmaster." + apex, Serial: uint32(time.Now().Unix()),
		Refresh: l.st.SOARefresh, Retry: l.st.SOARetry, Expire: l.st.SOAExpire, Minttl: l.st.SOAMinTTL,
	}
}

// nameServers returns up to three NS records for servers of the agent's datacenter, and their addresses.
func (l *lookup) nameServers() (ns, extra []dns.RR) {
	l.passing = true // in another order every time
	reply, standing, err := l.cfg.Source.Instances(l.ctx, &catalog.InstancesRequest{Options: l.options(""), Service: catalog.ServerServiceName})
	if err != nil {
		l.log.Warn("name servers not found", "error", err)
		return nil, nil
	}
	l.rest(standing, &reply.Meta)
	apex := strings.ToLower(l.zone)
	for _, i := range rand.Perm(len(reply.Instances)) {
		in := reply.Instances[i]
		if !label(in.Node.Node) || health(in) == catalog.Critical || len(ns) == maxServers {
			continue
		}
		target := strings.ToLower(in.Node.Node + ".node." + l.cfg.Datacenter + "." + apex)
		ns = append(ns, &dns.NS{Hdr: l.header(apex, dns.TypeNS, l.st.NodeTTL), Ns: target})
		if ip, ok := parseIP(nodeAddress(in.Node, dns.TypeANY, false)); ok {
			extra = append(extra, l.address(target, ip, l.st.NodeTTL))
		}
	}
	return ns, extra
}

// address makes the A or AAAA record of ip.
func (l *lookup) address(name string, ip netip.Addr, ttl time.Duration) dns.RR {
	if ip.Is4() {
		return &dns.A{Hdr: l.header(name, dns.TypeA, ttl), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: l.header(name, dns.TypeAAAA, ttl), AAAA: ip.AsSlice()}
}

// fits reports whether a question of this type is answered by an address of ip's family.
func fits(qtype uint16, ip netip.Addr) bool {
	switch qtype {
	case dns.TypeA:
		return ip.Is4()
	case dns.TypeAAAA:
		return ip.Is6()
	}
	return true
}

func parseIP(s string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(s)
	return ip.Unmap(), err == nil
}

// nodeAddress returns the node's address for a question of this type.
func nodeAddress(n *catalog.Node, qtype uint16, wan bool) string {
	for _, tag := range tags(qtype, wan) {
		if a := n.TaggedAddresses[tag]; a != "" {
			return a
		}
	}
	return n.Address
}

// tags lists the tagged addresses to prefer for a question of this type.
func tags(qtype uint16, wan bool) []string {
	var list []string
	if wan {
		switch qtype {
		case dns.TypeA:
			list = append(list, "wan_ipv4")
		case dns.TypeAAAA:
			list = append(list, "wan_ipv6")
		}
		return append(list, "wan")
	}
	switch qtype {
	case dns.TypeA:
		list = append(list, "lan_ipv4")
	case dns.TypeAAAA:
		list = append(list, "lan_ipv6")
	}
	return list
}

// instanceAddress returns the address and port of an instance; own tells that the service has an address of its own.
func instanceAddress(in *catalog.Instance, qtype uint16, wan bool) (addr string, port int, own bool) {
	port = in.Service.Port
	for _, tag := range tags(qtype, wan) {
		if a, ok := in.Service.TaggedAddresses[tag]; ok && a.Address != "" {
			if wan && a.Port != 0 {
				port = a.Port
			}
			return a.Address, port, true
		}
	}
	if in.Service.Address != "" {
		return in.Service.Address, port, true
	}
	return nodeAddress(in.Node, qtype, wan), port, false
}

// health is the worst status of an instance's checks.
func health(in *catalog.Instance) string {
	worst := catalog.Passing
	for _, c := range in.Checks {
		switch c.Status {
		case catalog.Passing:
		case catalog.Warning:
			if worst == catalog.Passing {
				worst = catalog.Warning
			}
		default:
			return catalog.Critical
		}
	}
	return worst
}

// foreign reports whether WAN addresses are wanted for dc.
func (l *lookup) foreign(dc string) bool {
	return l.st.TranslateWAN && dc != "" && !strings.EqualFold(dc, l.cfg.Datacenter)
}

// serviceTTL returns the TTL configured for a service: by its name, else by the longest prefix.
func (l *lookup) serviceTTL(service string) time.Duration {
	service = strings.ToLower(service)
	if ttl, ok := l.st.ServiceTTL[service]; ok {
		return ttl
	}
	longest, found := -1, time.Duration(0)
	for pattern, ttl := range l.st.ServiceTTL {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasPrefix(service, prefix) && len(prefix) > longest {
			longest, found = len(prefix), ttl
		}
	}
	return found
}

// service answers a question about instances.
func (l *lookup) service(s subject, req *catalog.InstancesRequest) {
	req.Options = l.options(s.dc)
	reply, standing, err := l.cfg.Source.Instances(l.ctx, req)
	if err != nil {
		l.failed(err)
		return
	}
	l.rest(standing, &reply.Meta)
	instances := make([]*catalog.Instance, 0, len(reply.Instances))
	for _, in := range reply.Instances {
		if h := health(in); h == catalog.Passing || h == catalog.Warning && !l.st.OnlyPassing {
			instances = append(instances, in)
		}
	}
	if len(instances) == 0 {
		l.missing()
		return
	}
	l.mixed = true
	rand.Shuffle(len(instances), func(i, j int) { instances[i], instances[j] = instances[j], instances[i] })
	l.instances(s, instances, l.serviceTTL(req.Service))
}

// query answers a question about a prepared query, in the order that it gives. It has chosen by health already.
func (l *lookup) query(s subject) {
	req := &query.ExecuteRequest{Options: l.options(s.dc), Query: s.query()}
	if req.Query == "" {
		l.missing()
		return
	}
	if l.client.IsValid() {
		req.Origin.IP = l.client.Unmap().WithZone("").String()
	}
	l.scoped, l.passing = true, true
	reply, err := l.cfg.Source.Query(l.ctx, req)
	if err != nil {
		l.failed(err)
		return
	}
	l.rest(nil, &reply.Meta)
	if len(reply.Instances) == 0 {
		l.missing()
		return
	}
	ttl, ok := reply.DNS.Duration()
	if !ok {
		ttl = l.serviceTTL(reply.Service)
	}
	s.dc = reply.Datacenter
	l.instances(s, reply.Instances, ttl)
}

// instances answers with instances in their order.
func (l *lookup) instances(s subject, instances []*catalog.Instance, ttl time.Duration) {
	switch l.question.Qtype {
	case dns.TypeSRV:
		l.srv(s, instances, ttl)
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeTXT:
		l.addresses(s, instances, ttl)
	}
	if len(l.resp.Answer) == 0 {
		l.resp.Ns = append(l.resp.Ns, l.soa())
	}
}

// addresses answers with the distinct addresses of instances, or with the first name that stands for one.
func (l *lookup) addresses(s subject, instances []*catalog.Instance, ttl time.Duration) {
	wan := l.foreign(s.dc)
	seen := make(map[netip.Addr]bool, len(instances))
	name := ""
	for _, in := range instances {
		addr, _, _ := instanceAddress(in, l.question.Qtype, wan)
		ip, ok := parseIP(addr)
		if !ok && strings.EqualFold(dns.Fqdn(addr), l.question.Name) {
			addr = nodeAddress(in.Node, l.question.Qtype, wan)
			ip, ok = parseIP(addr)
		}
		switch {
		case !ok && name == "" && isName(addr):
			name = addr
		case !ok || seen[ip] || !fits(l.question.Qtype, ip):
		default:
			seen[ip] = true
			l.resp.Answer = append(l.resp.Answer, l.address(l.question.Name, ip, ttl))
		}
	}
	l.full = l.resp.Answer
	if limit := l.st.ARecordLimit; limit > 0 && len(l.resp.Answer) > limit {
		l.resp.Answer = l.resp.Answer[:limit]
	}
	if len(l.resp.Answer) == 0 && name != "" {
		l.resp.Answer = append(l.resp.Answer, l.alias(l.question.Name, name, ttl)...)
		for _, rr := range l.resp.Answer {
			rr.Header().Ttl = uint32(ttl / time.Second)
		}
	}
}

// alias returns a CNAME record from owner to name, and what name resolves to.
func (l *lookup) alias(owner, name string, ttl time.Duration) []dns.RR {
	target := dns.Fqdn(name)
	return append([]dns.RR{&dns.CNAME{Hdr: l.header(owner, dns.TypeCNAME, ttl), Target: target}}, l.chase(target)...)
}

// chase resolves a name that stands for an address.
func (l *lookup) chase(name string) []dns.RR {
	l.passing = true
	if zone, ours := l.Server.zone(name); ours {
		if l.depth >= maxDepth {
			return nil
		}
		inner := &lookup{
			Server: l.Server, st: l.st, ctx: l.ctx, zone: zone, token: l.token, depth: l.depth + 1, edns: l.edns, client: l.client, resp: new(dns.Msg),
			question: dns.Question{Name: name, Qtype: dns.TypeANY, Qclass: dns.ClassINET},
		}
		inner.zoneQuestion()
		inner.close()
		l.scoped = l.scoped || inner.scoped
		return slices.DeleteFunc(inner.resp.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeTXT })
	}
	if len(l.st.Recursors) == 0 {
		return nil
	}
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	resp, err := l.ask(l.ctx, l.st, "udp", m)
	if err != nil {
		l.log.Warn("name of an address not resolved", "name", name, "error", err)
		return nil
	}
	var kept []dns.RR
	for _, rr := range resp.Answer {
		switch rr.Header().Rrtype {
		case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME:
			if len(kept) < maxChased || l.edns {
				kept = append(kept, rr)
			}
		}
	}
	return kept
}

// srv answers with one SRV record per distinct node, address and port.
func (l *lookup) srv(s subject, instances []*catalog.Instance, ttl time.Duration) {
	type place struct {
		node, addr string
		port       int
	}
	wan := l.foreign(s.dc)
	seen := make(map[place]bool, len(instances))
	glued := make(map[string]extent, len(instances))
	for _, in := range instances {
		addr, port, own := instanceAddress(in, dns.TypeSRV, wan)
		ip, isIP := parseIP(addr)
		if !isIP && strings.EqualFold(dns.Fqdn(addr), l.question.Name) {
			addr, own = nodeAddress(in.Node, dns.TypeSRV, wan), false
			ip, isIP = parseIP(addr)
		}
		key := place{in.Node.Node, in.Service.Address, port}
		if seen[key] || !isIP && !isName(addr) {
			continue
		}
		seen[key] = true
		weight := 1
		if w := in.Service.Weights; w != nil {
			if weight = w.Passing; health(in) == catalog.Warning {
				weight = w.Warning
			}
		}
		nodeName := l.nodeName(in.Node, l.zone)
		target, glue := dns.Fqdn(addr), []dns.RR(nil)
		_, known := glued[target]
		if isIP {
			target = nodeName
			switch apart := own || addr != in.Node.Address || nodeName == ""; {
			case apart && in.Node.PeerName != "":
				target = encodeAddr(ip) + ".addr." + l.zone
			case apart:
				target = encodeAddr(ip) + ".addr." + l.place(in.Node) + l.zone
			}
			_, known = glued[target]
			glue = []dns.RR{l.address(target, ip, ttl)}
		} else if !known {
			glue = l.chase(target)
			for _, rr := range glue {
				rr.Header().Ttl = uint32(ttl / time.Second)
			}
		}
		l.resp.Answer = append(l.resp.Answer, &dns.SRV{
			Hdr: l.header(l.question.Name, dns.TypeSRV, ttl), Priority: priority, Weight: uint16(weight), Port: uint16(port), Target: target,
		})
		if !known {
			from := len(l.resp.Extra)
			l.resp.Extra = append(l.resp.Extra, glue...)
			if l.st.NodeMetaTXT && nodeName != "" {
				l.resp.Extra = append(l.resp.Extra, l.meta(nodeName, in.Node, ttl)...)
			}
			glued[target] = extent{from, len(l.resp.Extra)}
		}
		l.glue = append(l.glue, glued[target])
	}
}

// nodeName is the name that a node is found by under a zone. It is empty when the node's own name cannot be part of one.
func (l *lookup) nodeName(n *catalog.Node, zone string) string {
	if name := written(n.Node) + ".node." + l.place(n) + zone; isName(name) {
		return name
	}
	return ""
}

// place is the part of a node's name that says where it is: its datacenter or its peer, with a dot at the end.
func (l *lookup) place(n *catalog.Node) string {
	switch {
	case n.PeerName != "":
		return n.PeerName + ".peer."
	case n.Datacenter != "":
		return n.Datacenter + "."
	}
	return l.cfg.Datacenter + "."
}

// meta returns a node's meta as TXT records.
func (l *lookup) meta(name string, n *catalog.Node, ttl time.Duration) (list []dns.RR) {
	for _, key := range slices.Sorted(maps.Keys(n.Meta)) {
		text := txtForm(key, n.Meta[key])
		var chunks []string
		for len(text) > 255 {
			chunks, text = append(chunks, written(text[:255])), text[255:]
		}
		list = append(list, &dns.TXT{Hdr: l.header(name, dns.TypeTXT, ttl), Txt: append(chunks, written(text))})
	}
	return list
}

// node answers a question about a node.
func (l *lookup) node(s subject) {
	qtype := l.question.Qtype
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeTXT:
	default:
		return
	}
	reply, standing, err := l.cfg.Source.Node(l.ctx, &catalog.NodeServicesRequest{Options: l.options(s.dc), Node: strings.Join(s.parts, "."), Peer: s.peer})
	if err != nil {
		l.failed(err)
		return
	}
	l.rest(standing, &reply.Meta)
	if reply.Node == nil || !strings.EqualFold(reply.Node.Node, strings.Join(s.parts, ".")) {
		l.missing()
		return
	}
	txt := l.meta(l.question.Name, reply.Node, l.st.NodeTTL)
	if qtype != dns.TypeTXT {
		addr := nodeAddress(reply.Node, qtype, l.foreign(s.dc))
		switch ip, ok := parseIP(addr); {
		case ok && fits(qtype, ip):
			l.resp.Answer = append(l.resp.Answer, l.address(l.question.Name, ip, l.st.NodeTTL))
		case !ok && isName(addr):
			l.resp.Answer = append(l.resp.Answer, l.alias(l.question.Name, addr, l.st.NodeTTL)...)
		}
	}
	switch {
	case qtype == dns.TypeTXT, qtype == dns.TypeANY:
		l.resp.Answer = append(l.resp.Answer, txt...)
	case l.st.NodeMetaTXT:
		l.resp.Extra = append(l.resp.Extra, txt...)
	}
}

// virtual answers with the virtual IP of a service.
func (l *lookup) virtual(s subject) {
	if len(s.parts) != 1 {
		l.missing()
		return
	}
	l.passing = true
	ip, err := l.cfg.Source.Virtual(l.ctx, l.options(""), s.parts[0], s.peer)
	if err != nil {
		l.failed(err)
		return
	}
	if ip.IsValid() {
		l.resp.Answer = append(l.resp.Answer, l.address(strings.ToLower(l.question.Name), ip, l.st.NodeTTL))
	}
}

// addr answers with the address a name is made of.
func (l *lookup) addr(s subject) {
	ip, ok := netip.Addr{}, false
	if len(s.parts) == 1 {
		ip, ok = decodeAddr(s.parts[0])
	}
	if !ok {
		l.missing()
		return
	}
	rr := l.address(strings.ToLower(l.question.Name), ip, l.st.NodeTTL)
	switch qtype := l.question.Qtype; {
	case qtype == dns.TypeANY, (qtype == dns.TypeA || qtype == dns.TypeAAAA) && fits(qtype, ip):
		l.resp.Answer = append(l.resp.Answer, rr)
	default:
		l.resp.Extra = append(l.resp.Extra, rr)
	}
}

// reverse answers a question under arpa. It reports false, with the answer for "nobody has it" prepared, when the name
// is for the recursors to try.
func (l *lookup) reverse() bool {
	if l.question.Qtype == dns.TypeSOA {
		defer func() {
			if len(l.resp.Ns) == 0 {
				l.resp.Ns = append(l.resp.Ns, l.soa())
			}
		}()
	}
	ip, ok := reverseAddr(l.question.Name)
	if !ok {
		l.missing()
		return false
	}
	reply, err := l.cfg.Source.Address(l.ctx, &catalog.AddressRequest{Options: l.options(""), Address: ip.String()})
	if err != nil {
		l.failed(err)
		return true
	}
	target := ""
	switch zone := l.zones[0]; {
	case reply.Node != nil:
		target = l.nodeName(reply.Node, zone)
	case reply.Service != "":
		target = strings.ReplaceAll(written(reply.Service), ".", `\.`) + ".service." + l.cfg.Datacenter + "." + zone
	}
	if !isName(target) {
		l.missing()
		return false
	}
	l.resp.Answer = append(l.resp.Answer, &dns.PTR{Hdr: l.header(l.question.Name, dns.TypePTR, 0), Ptr: target})
	return true
}
