package gossip

import (
	"net/netip"
	"strconv"
)

// Roles of members, told by the tag "role".
const (
	RoleServer = "consul"
	RoleClient = "node"
)

// A Server is what a server's tags tell of it (spec/state.md section 12).
type Server struct {
	ID         string // node ID
	Name       string
	Datacenter string
	Addr       netip.AddrPort // of the server port
	Status     Status
	Bootstrap  bool // it makes a cluster by itself
	Expect     int  // or waits for this many servers
	Build      string
	RaftVersion,
	GRPCPort, GRPCTLSPort, WANPort int
	UseTLS  bool
	ACLs    string
	Gossip  netip.AddrPort
	Version int // of the protocol between servers
	// ReadReplica says that it copies the state and answers reads, and never votes.
	ReadReplica bool
}

// ParseServer reads a member's tags; false when it is no server or its tags are broken.
func ParseServer(m Member) (Server, bool) {
	if m.Tags["role"] != RoleServer {
		return Server{}, false
	}
	number := func(tag string) int {
		n, err := strconv.Atoi(m.Tags[tag])
		if err != nil {
			return 0
		}
		return n
	}
	port, err := strconv.ParseUint(m.Tags["port"], 10, 16)
	if err != nil || m.Tags["id"] == "" || m.Tags["dc"] == "" {
		return Server{}, false
	}
	return Server{
		ID: m.Tags["id"], Name: m.Name, Datacenter: m.Tags["dc"], Addr: netip.AddrPortFrom(m.Addr, uint16(port)), Status: m.Status,
		Bootstrap: m.Tags["bootstrap"] == "1", Expect: number("expect"), Build: m.Tags["build"], RaftVersion: number("raft_vsn"),
		GRPCPort: number("grpc_port"), GRPCTLSPort: number("grpc_tls_port"), WANPort: number("wan_join_port"),
		UseTLS: m.Tags["use_tls"] == "1", ACLs: m.Tags["acls"], Gossip: netip.AddrPortFrom(m.Addr, m.Port), Version: number("vsn"),
		ReadReplica: m.Tags["read_replica"] == "1" || m.Tags["nonvoter"] == "1",
	}, true
}

// Tags returns what ParseServer reads.
func (s Server) Tags() map[string]string {
	acls := s.ACLs
	if acls == "" {
		acls = "0"
	}
	tags := map[string]string{
		"role": RoleServer, "dc": s.Datacenter, "id": s.ID, "port": strconv.Itoa(int(s.Addr.Port())), "segment": "",
		"vsn": "2", "vsn_min": "2", "vsn_max": "3", "raft_vsn": "3", "build": s.Build, "acls": acls, "ft_fs": "1", "ft_si": "1",
	}
	if s.Bootstrap {
		tags["bootstrap"] = "1"
	}
	for tag, n := range map[string]int{
		"expect": s.Expect, "grpc_port": s.GRPCPort, "grpc_tls_port": s.GRPCTLSPort, "wan_join_port": s.WANPort,
	} {
		if n > 0 {
			tags[tag] = strconv.Itoa(n)
		}
	}
	if s.UseTLS {
		tags["use_tls"] = "1"
	}
	if s.ReadReplica {
		tags["read_replica"], tags["nonvoter"] = "1", "1"
	}
	return tags
}

// ClientTags returns the tags of an agent that is no server.
func ClientTags(datacenter, id, build string) map[string]string {
	return map[string]string{
		"role": RoleClient, "dc": datacenter, "id": id, "segment": "", "vsn": "2", "vsn_min": "2", "vsn_max": "3", "build": build,
	}
}
