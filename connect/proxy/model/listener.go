package model

import (
	"net/netip"
	"time"
)

// Defaults of listener settings.
const (
	DefaultBufferLimit       = 1 << 20
	DefaultInspectTimeout    = 15 * time.Second
	DefaultTCPIdleTimeout    = time.Hour
	DefaultHandshakeTimeout  = 15 * time.Second
	DefaultFetchTimeout      = 15 * time.Second
	DefaultConnectTimeout    = 5 * time.Second
	DefaultMaxConnectionTCP  = 1024
	DefaultOverprovisioning  = 140
	DefaultPanicThreshold    = 50
	DefaultDNSRefresh        = 5 * time.Second
	DefaultLeastRequestPicks = 2
)

// A Listener accepts connections and hands each to the filter chain that matches it.
type Listener struct {
	Name       string
	Address    Address
	Additional []Address // further addresses that share everything else
	Direction  Direction
	StatPrefix string // replaces the address in statistics; empty uses the address
	BindToPort bool   // false: gets only connections that another listener hands over
	ReusePort  bool
	Backlog    int // 0 uses the system's default

	Inspectors        []Inspector // in the order in which they look at a new connection
	InspectTimeout    time.Duration
	ContinueOnTimeout bool // inspection timed out: match with what is known rather than close
	BufferLimit       int  // bytes read ahead of a slow peer

	DrainModifyOnly bool // drains only when changed or removed, not when the proxy is told to fail health checks
	AccessLogs      []AccessLog

	Chains  []*FilterChain
	Default *FilterChain // used when none matches; nil closes the connection
}

// An Inspector looks at the first bytes or the socket of a new connection
// before a filter chain is chosen.
type Inspector uint8

// The inspectors.
const (
	InspectTLS         Inspector = iota + 1 // server name, ALPN and whether it is TLS at all
	InspectOriginalDst                      // destination before address translation
	InspectHTTP                             // HTTP version of plaintext connections
)

// A FilterChain is what happens to the connections that it matches.
type FilterChain struct {
	Name  string
	Match ChainMatch

	TLS              *DownstreamTLS // nil serves plaintext
	HandshakeTimeout time.Duration  // of TLS; always positive

	Filters  []NetworkFilter // decide in order whether the connection goes on
	Terminal Terminal        // carries it; never nil
}

// A ChainMatch says which connections a filter chain is for. An empty field
// accepts all. The order in which the fields decide is that of package listener.
type ChainMatch struct {
	DestinationPort      uint16 // 0 accepts all
	DestinationPrefixes  []netip.Prefix
	ServerNames          []string // lower case; "*.example.com" covers names below
	TransportProtocol    string   // "tls", "raw_buffer"
	ApplicationProtocols []string // any of them
	DirectSourcePrefixes []netip.Prefix
	SourceType           SourceType
	SourcePrefixes       []netip.Prefix
	SourcePorts          []uint16
}

// A SourceType restricts a chain by where the peer is.
type SourceType uint8

// The source types.
const (
	SourceAny      SourceType = iota
	SourceLocal               // the same IP address, or loopback
	SourceExternal            // anything else
)

// A NetworkFilter is one of *NetworkRBAC, *ConnectionLimit, *SNICluster.
type NetworkFilter interface{ networkFilter() }

// A Terminal is the last filter of a chain: *TCPProxy or *HTTPManager.
type Terminal interface{ terminal() }

// NetworkRBAC admits or refuses a connection by who and where the peer is.
type NetworkRBAC struct {
	Name       string // filter name in the configuration
	StatPrefix string
	Rules      *RBAC // nil admits all
	Shadow     *RBAC // counted only; nil is not evaluated
	// ShadowStatPrefix goes before the names of the shadow counters.
	ShadowStatPrefix string
}

// ConnectionLimit closes connections above a number.
type ConnectionLimit struct {
	StatPrefix string
	Max        uint64        // at least 1
	Delay      time.Duration // wait before closing an excess connection
}

// SNICluster makes the server name of the client the name of the cluster to
// connect to. A client without one goes where the terminal filter says.
type SNICluster struct{}

// A TCPProxy carries bytes both ways between the connection and a host of a cluster.
type TCPProxy struct {
	StatPrefix string
	Cluster    string            // empty if Weighted is used, or SNICluster decides, or nothing is to be reached
	Weighted   []WeightedCluster // one is drawn for each connection

	IdleTimeout time.Duration // no byte either way; 0 never
	MaxDuration time.Duration // 0 unlimited
	// MaxConnectAttempts bounds how many hosts are tried. 0 means not
	// configured: up to three different hosts are tried.
	MaxConnectAttempts uint32
	HashSource         bool // consistent balancing goes by the address of the client
	AccessLogs         []AccessLog
}

// A WeightedCluster gets a share of connections.
type WeightedCluster struct {
	Name   string
	Weight uint32 // at least 1
}

func (*NetworkRBAC) networkFilter()     {}
func (*ConnectionLimit) networkFilter() {}
func (*SNICluster) networkFilter()      {}
func (*TCPProxy) terminal()             {}

// AllChains returns the chains with the default one, if any, last.
func (l *Listener) AllChains() []*FilterChain {
	if l.Default == nil {
		return l.Chains
	}
	return append(l.Chains[:len(l.Chains):len(l.Chains)], l.Default)
}

// RouteNames returns the names of route tables that come from the control plane, with repeats.
func (l *Listener) RouteNames() []string {
	var names []string
	for _, c := range l.AllChains() {
		if h, ok := c.Terminal.(*HTTPManager); ok && h.RouteName != "" {
			names = append(names, h.RouteName)
		}
	}
	return names
}

// Clusters returns the names of clusters that the listener can't serve without, with repeats: those that TCP goes to.
// Requests to a cluster that is not there are answered.
func (l *Listener) Clusters() []string {
	var names []string
	for _, c := range l.AllChains() {
		if t, ok := c.Terminal.(*TCPProxy); ok {
			if t.Cluster != "" {
				names = append(names, t.Cluster)
			}
			for _, w := range t.Weighted {
				names = append(names, w.Name)
			}
		}
	}
	return names
}

// Secrets returns the names of the SDS secrets that the chains need, with repeats.
func (l *Listener) Secrets() []string {
	var names []string
	for _, c := range l.AllChains() {
		if c.TLS != nil {
			names = append(names, c.TLS.Secrets()...)
		}
	}
	return names
}
