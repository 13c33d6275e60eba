package workload

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// processInfo is what is known of the other end of a connection.
type processInfo struct {
	credentials.CommonAuthInfo
	process *Process // nil when the kernel does not tell
}

func (processInfo) AuthType() string { return "process" }

// An attestor asks the kernel who has connected, at once, so that the answer is about the process that did.
// What one user takes of connections is bounded.
type attestor struct{ users *users }

func (a attestor) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	raw := c
	l, limited := c.(*limitedConn)
	if limited {
		raw = l.Conn
	}
	unix, ok := raw.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("workloads connect to a UNIX socket")
	}
	p, err := processOf(unix)
	if err != nil {
		return nil, nil, err
	}
	if limited && p != nil && !l.owned(a.users, p.UID) {
		return nil, nil, errors.New("the user has too many connections")
	}
	return c, processInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p}, nil
}

func (attestor) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("only for servers")
}

func (attestor) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "process"}
}
func (a attestor) Clone() credentials.TransportCredentials { return a }
func (attestor) OverrideServerName(string) error           { return nil }
