package dns_test

import (
	"context"
	"net"
	"testing"

	"github.com/miekg/dns"
)

// A client takes an answer from the address it has asked only, also when the server listens on all.
func TestAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	for _, listen := range []struct{ network, address string }{{"udp", ":0"}, {"udp4", "0.0.0.0:0"}} {
		conn, err := net.ListenPacket(listen.network, listen.address)
		if err != nil {
			t.Fatal(err)
		}
		s := server(nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, []net.PacketConn{conn}, nil) }()
		_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
		for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
			for _, name := range []string{"web.service.consul.", "web.service.consul.", "loop.service.consul."} { // kept the second time; never kept
				m := new(dns.Msg)
				m.SetQuestion(name, dns.TypeA)
				if resp := exchange(t, net.JoinHostPort(host, port), m); len(resp.Answer) == 0 {
					t.Errorf("%s %s: %v", listen.network, host, resp)
				}
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
