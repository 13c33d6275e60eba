package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// idleClient is a process of its own, so that what clients hold is not counted: it opens connections, makes a request
// over each, says so, and keeps them until its input ends.
func idleClient(addr, protocol string, n int, keys string) error {
	b, err := os.ReadFile(keys)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return err
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{protocol}}
	var all []net.Conn
	for range n {
		c, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return err
		}
		all = append(all, c)
		c.SetDeadline(time.Now().Add(time.Minute))
		if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
			return fmt.Errorf("speaks %q", got)
		}
		if protocol == "h2" {
			err = oneRequestHTTP2(c)
		} else {
			err = oneRequest(c)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(all)
	return nil
}

func oneRequest(c net.Conn) error {
	io.WriteString(c, "GET / HTTP/1.1\r\nhost: web\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("status %d, %w", resp.StatusCode, err)
	}
	return nil
}

func oneRequestHTTP2(c net.Conn) error {
	io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.WriteSettings()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range []string{":method GET", ":scheme https", ":authority web", ":path /", "user-agent test"} {
		name, value, _ := strings.Cut(h, " ")
		enc.WriteField(hpack.HeaderField{Name: name, Value: value})
	}
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true})
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				f.WriteSettingsAck()
			}
		case *http2.DataFrame:
			if fr.StreamEnded() {
				return nil
			}
		case *http2.GoAwayFrame, *http2.RSTStreamFrame:
			return errors.New(fr.Header().String())
		}
	}
}

// raceEnabled says that what the race detector allocates is counted, too.
var raceEnabled bool

// occupied returns the bytes of heap and stacks in use.
func occupied() int {
	for range 3 {
		runtime.GC() // pools forget, and stacks shrink
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// settled measures until it is less than the ceiling and has not fallen for a while, or a minute is over: connections give
// back what a request took once they were quiet for some seconds.
func settled(measure func() int, ceiling int, while time.Duration) int {
	least, since := measure(), time.Now()
	for end := since.Add(time.Minute); time.Now().Before(end) && (least >= ceiling || time.Since(since) < while); {
		time.Sleep(100 * time.Millisecond)
		if now := measure(); now < least {
			least, since = now, time.Now()
		}
	}
	return least
}

// resident returns the resident memory of the process, as it is when all that can be is given back.
func resident() int {
	debug.FreeOSMemory()
	b, _ := os.ReadFile("/proc/self/statm")
	var size, rss int
	fmt.Sscan(string(b), &size, &rss)
	return rss * os.Getpagesize()
}

// TestIdleConnectionsAreSmall bounds what a connection with mutual TLS takes once it had a request.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if v := strings.Fields(os.Getenv("PROXY_TEST_IDLE_CLIENT")); len(v) == 3 {
		var n int
		fmt.Sscan(v[2], &n)
		if err := idleClient(v[0], v[1], n, os.Getenv("PROXY_TEST_IDLE_KEYS")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if runtime.GOOS != "linux" || raceEnabled {
		t.Skip("how to wait without a buffer is not known here, or the race detector needs more")
	}
	n, ceiling, while := 1000, 20<<10, 3*time.Second
	if testing.Short() {
		n, ceiling, while = 200, 32<<10, 0 // what does not come from connections weighs more
	}
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			stop, addr, keys := idleProxy(t)
			defer stop()
			cmd := exec.Command(os.Args[0], "-test.run=^TestIdleConnectionsAreSmall$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("PROXY_TEST_IDLE_CLIENT=%s %s %d", addr, protocol, n), "PROXY_TEST_IDLE_KEYS="+keys)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			before, rss := occupied(), resident()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer in.Close()
			if line, _ := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
				t.Fatalf("the client says %q", line)
			}
			each := settled(func() int { return (occupied() - before) / n }, ceiling, while)
			t.Logf("a connection holds %d bytes, and %d of resident memory", each, (resident()-rss)/n)
			if each > ceiling {
				t.Errorf("a connection holds %d bytes, want at most %d", each, ceiling)
			}
			if path := os.Getenv("PROXY_TEST_PROFILE"); path != "" {
				runtime.MemProfileRate = 512
				f, err := os.Create(path + "-" + strings.ReplaceAll(protocol, "/", "") + ".pprof")
				if err != nil {
					t.Fatal(err)
				}
				pprof.Lookup("heap").WriteTo(f, 0)
				f.Close()
			}
		})
	}
}

// idleProxy runs a proxy that wants certificates of its clients, and returns how to stop it, where it is and a file
// with a certificate and key for it.
func idleProxy(t *testing.T) (stop func(), addr, keys string) {
	t.Helper()
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go app.Serve(ln)
	yaml := fmt.Sprintf(manager, "", toApp)
	yaml = strings.Replace(yaml, "10.0.0.1, port_value: 8080", "127.0.0.1, port_value: 0", 1)
	yaml = strings.Replace(yaml, "10.0.0.3, port_value: 80}", fmt.Sprintf("127.0.0.1, port_value: %d}", ln.Addr().(*net.TCPAddr).Port), 1)
	b, err := decode.New(decode.Options{}).Bootstrap("x.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	ca := testkit.NewCA(t, "ca")
	chain := b.Listeners[0].Chains[0]
	chain.HandshakeTimeout = time.Minute
	chain.TLS = &model.DownstreamTLS{TLS: model.TLS{
		Certificates: []model.Certificate{{TLS: *ca.Issue("spiffe://td/svc/web")}},
		Validation:   &model.Validation{Roots: []*x509.Certificate{ca.Certificate()}, MaxDepth: -1}, ALPN: []string{"h2", "http/1.1"},
	}, RequireClientCertificate: true}
	p, err := proxy.New(proxy.Config{Bootstrap: b, ShutdownTime: time.Millisecond, Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(context.Background()) }()
	for !p.Ready() {
		time.Sleep(time.Millisecond)
	}
	client := ca.Issue("spiffe://td/svc/caller")
	var file bytes.Buffer
	for _, der := range client.Certificate {
		pem.Encode(&file, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pem.Encode(&file, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	keys = t.TempDir() + "/client.pem"
	if err := os.WriteFile(keys, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		app.Close()
		p.Quit()
		<-done
	}, p.Listeners()[0].Addresses[0], keys
}
