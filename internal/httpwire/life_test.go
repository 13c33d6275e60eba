package httpwire_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/httpwire"
)

const simple = "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"

// A client keeps one connection and asks one thing after the other.
type client struct {
	net.Conn
	r *bufio.Reader
}

func newClient(p *pipes) *client {
	c := p.dial()
	return &client{c, bufio.NewReader(c)}
}

func (c *client) ask(raw string) (*http.Response, string, error) {
	go io.WriteString(c, raw)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestServeEndsAtOnceWhenNothingIsInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, httpwire.Config{Handler: mux})
		idle, fresh, slow := newClient(p), newClient(p), newClient(p)
		if _, _, err := idle.ask(simple); err != nil {
			t.Fatal(err)
		}
		if _, _, err := slow.ask("GET /echo HTTP/1.0\r\n\r\n"); err != nil { // with net/http from here on
			t.Fatal(err)
		}
		start := time.Now()
		if err := stop(); err != nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("ended with %v after %v", err, time.Since(start))
		}
		for _, c := range []*client{idle, fresh, slow} {
			if _, err := c.r.ReadByte(); err == nil {
				t.Error("a connection is still open")
			}
		}
	})
}

// TestRequestsInProgressHaveTime checks both halves of the grace.
func TestRequestsInProgressHaveTime(t *testing.T) {
	for _, form := range []struct{ name, request string }{
		{"here", "GET %s HTTP/1.1\r\nHost: x\r\n\r\n"}, {"net/http", "GET %s HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n"},
	} {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				stuck := make(chan struct{})
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case "/soon":
						time.Sleep(time.Second)
					case "/wait":
						<-r.Context().Done()
					case "/stuck":
						<-stuck
					}
					io.WriteString(w, "done")
				})
				p, stop := serve(t, httpwire.Config{Handler: handler, Grace: 4 * time.Second})
				start := time.Now()
				type result struct {
					path, body string
					closed     bool
					at         time.Duration
					err        error
				}
				results := make(chan result, 3)
				for _, path := range []string{"/soon", "/wait", "/stuck"} {
					c := newClient(p)
					go func() {
						resp, body, err := c.ask(fmt.Sprintf(form.request, path))
						results <- result{path, body, resp != nil && resp.Close, time.Since(start), err}
					}()
				}
				synctest.Wait()
				go func() {
					time.Sleep(10 * time.Second)
					close(stuck)
				}()
				if err := stop(); err != nil {
					t.Error(err)
				}
				for range 3 {
					r := <-results
					want := map[string]time.Duration{"/soon": time.Second, "/wait": 2 * time.Second, "/stuck": 4 * time.Second}[r.path]
					if (r.path == "/stuck") != (r.err != nil) || r.err == nil && (r.body != "done" || !r.closed) || r.at < want || r.at > want+600*time.Millisecond {
						t.Errorf("%+v, want it at %v", r, want)
					}
				}
				time.Sleep(20 * time.Second)
			})
		})
	}
}

func TestContextEndsWhenTheClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Duration, 1)
		p, stop := serve(t, httpwire.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
			defer cancel()
			<-ctx.Done()
			if !errors.Is(r.Context().Err(), context.Canceled) {
				t.Errorf("context ended with %v", r.Context().Err())
			}
			ended <- time.Since(start)
		})})
		c := p.dial()
		io.WriteString(c, simple)
		time.Sleep(5 * time.Second)
		c.Close()
		if took := <-ended; took != 5*time.Second {
			t.Errorf("the handler was told after %v", took)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestWaitingRequestsLeaveTheConnectionFit answers after a watch, and reads a next request that came meanwhile.
func TestWaitingRequestsLeaveTheConnectionFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, httpwire.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
				t.Error("context ended")
			case <-time.After(time.Second):
			}
			io.WriteString(w, r.URL.Path)
		})})
		c := newClient(p)
		for i := range 3 {
			path := fmt.Sprintf("/%d", i)
			if _, body, err := c.ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || body != path {
				t.Fatalf("%s = %q, %v", path, body, err)
			}
		}
		go func() {
			io.WriteString(c, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
			time.Sleep(500 * time.Millisecond)
			io.WriteString(c, "GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
		}()
		for _, path := range []string{"/a", "/b"} {
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(resp.Body); string(body) != path {
				t.Errorf("body %q, want %q", body, path)
			}
		}
		c.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestContextsOfDoneRequestsHaveEnded covers what handlers leave behind.
func TestContextsOfDoneRequestsHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept, derived context.Context
		ran := false
		p, stop := serve(t, httpwire.Config{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			kept = r.Context()
			var cancel context.CancelFunc
			derived, cancel = context.WithCancel(kept)
			t.Cleanup(cancel) // long after its parent has ended it
			context.AfterFunc(kept, func() { ran = true })
			stopped := context.AfterFunc(kept, func() { t.Error("called though stopped") })
			if !stopped() || stopped() {
				t.Error("stop reports wrongly")
			}
			if kept.Err() != nil || kept.Value("x") != nil {
				t.Error("the context is not fresh")
			}
		})})
		c := newClient(p)
		if _, _, err := c.ask(simple); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		<-kept.Done()
		<-derived.Done()
		if !ran || kept.Err() == nil {
			t.Errorf("ran %v, error %v", ran, kept.Err())
		}
		if context.AfterFunc(kept, func() { ran = false }); true {
			synctest.Wait()
			if ran {
				t.Error("a function registered late was not called")
			}
		}
		c.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestFlushTellsThatTheClientIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := make(chan error, 1)
		p, stop := serve(t, httpwire.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			ctl := http.NewResponseController(w)
			for {
				io.WriteString(w, "line\n")
				if err := ctl.Flush(); err != nil {
					failed <- err
					return
				}
				time.Sleep(time.Second)
			}
		})})
		c := newClient(p)
		go io.WriteString(c, simple)
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 10)
		if _, err := io.ReadFull(resp.Body, line); err != nil || string(line) != "line\nline\n" {
			t.Errorf("%q, %v", line, err)
		}
		c.Close()
		if err := <-failed; err == nil {
			t.Error("no error")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestHandlerPanicsEndTheConnectionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, httpwire.Config{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("here")
			}
		})})
		if _, _, err := newClient(p).ask("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
			t.Error("a panic was answered")
		}
		if resp, _, err := newClient(p).ask(simple); err != nil || resp.StatusCode != 200 {
			t.Errorf("after it: %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestLimitsOnHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, httpwire.Config{Handler: mux, MaxHeaderBytes: 100, HeaderTimeout: 3 * time.Second})
		c := newClient(p)
		resp, _, err := c.ask("GET /echo HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 8000) + "\r\n\r\n")
		if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%v, %v", resp, err)
		}
		c = newClient(p)
		start := time.Now()
		go io.WriteString(c, "GET /echo HT")
		if io.Copy(io.Discard, c.r); time.Since(start).Round(time.Second) != 3*time.Second {
			t.Errorf("a head that does not come was waited for %v", time.Since(start))
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedBodiesDoNotHideTheAnswer uses loopback: a reset discards what the client has not read yet.
func TestRefusedBodiesDoNotHideTheAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- httpwire.New(httpwire.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(w, "too large")
		})}).Serve(ctx, l)
	}()
	for range 20 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		const size = 4 << 20
		fmt.Fprintf(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size)
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Errorf("write: %v", err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "too large" {
			t.Errorf("%q, %v", body, err)
		}
		c.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

type brokenListener struct{ *pipes }

func (brokenListener) Accept() (net.Conn, error) { return nil, errors.New("broken") }

func TestServeTellsWhyItsListenerFailed(t *testing.T) {
	err := httpwire.New(httpwire.Config{Handler: mux}).Serve(t.Context(), brokenListener{newPipes()})
	if err == nil || err.Error() != "broken" {
		t.Errorf("got %v", err)
	}
}

// TestEncryptedConnectionsSpeakHTTP2 uses loopback, and the certificate of httptest.
func TestEncryptedConnectionsSpeakHTTP2(t *testing.T) {
	fake := httptest.NewUnstartedServer(nil)
	fake.EnableHTTP2 = true
	fake.StartTLS()
	defer fake.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- httpwire.New(httpwire.Config{Handler: mux}).Serve(ctx, tls.NewListener(l, &tls.Config{Certificates: fake.TLS.Certificates, NextProtos: []string{"h2", "http/1.1"}}))
	}()
	client := fake.Client()
	resp, err := client.Get("https://" + l.Addr().String() + "/told")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || string(body) != "hello" {
		t.Errorf("%s %q", resp.Proto, body)
	}
	client.CloseIdleConnections()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// slowly sends bytes one by one until the connection ends.
func slowly(c net.Conn, text string, every time.Duration) {
	for i := range len(text) {
		if _, err := c.Write([]byte(text[i : i+1])); err != nil {
			return
		}
		time.Sleep(every)
	}
}

// Whoever sends a byte now and then, or nothing, is not waited for (spec/threats.md, class 11).
func TestThreat11SlowClientsAreCutOff(t *testing.T) {
	const head, chunked = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n", "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	reads := func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); errors.Is(err, os.ErrDeadlineExceeded) {
			w.WriteHeader(http.StatusRequestTimeout)
		} else if err != nil {
			t.Errorf("a body ends with %v", err)
		}
	}
	ignores := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }
	large := func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 1<<20)) }
	tests := []struct {
		name    string
		handler http.HandlerFunc
		now     string // sent at once
		slow    string // sent byte by byte
		deaf    bool   // reads nothing
		answer  int
		within  time.Duration
	}{
		{name: "nothing", within: 10 * time.Second},
		{name: "one byte", now: "G", answer: 400, within: 10 * time.Second},
		{name: "a head", slow: "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 500), answer: 400, within: 12 * time.Second},
		{name: "a head behind a request", handler: ignores, now: "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", slow: strings.Repeat("b", 500), answer: 204, within: 12 * time.Second},
		{name: "a body", handler: reads, now: head, slow: strings.Repeat("b", 9000), answer: 408, within: 22 * time.Second},
		{name: "a body that nobody reads", handler: ignores, now: head, slow: strings.Repeat("b", 9000), answer: 204, within: 22 * time.Second},
		{name: "a body in chunks", handler: reads, now: chunked, slow: strings.Repeat("1\r\nb\r\n", 3000), answer: 408, within: 22 * time.Second},
		{name: "a body in chunks that nobody reads", handler: ignores, now: chunked, slow: strings.Repeat("1\r\nb\r\n", 3000), answer: 204, within: 22 * time.Second},
		{name: "an answer", handler: large, now: "GET / HTTP/1.1\r\nHost: x\r\n\r\n", deaf: true, within: 20*time.Second + 1025*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan time.Duration, 1)
				start := time.Now()
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tt.handler(w, r) })
				p, stop := serve(t, httpwire.Config{Handler: handler, HeaderTimeout: 10 * time.Second, BodyTimeout: 20 * time.Second})
				c := newClient(p)
				var sending sync.WaitGroup
				sending.Go(func() {
					if io.WriteString(c, tt.now); tt.slow != "" {
						slowly(c, tt.slow, 700*time.Millisecond)
					}
				})
				go func() {
					if tt.deaf {
						for { // reads, but too slowly
							if _, err := c.Conn.Read(make([]byte, 1)); err != nil {
								break
							}
							time.Sleep(time.Second)
						}
						ended <- time.Since(start)
						return
					}
					resp, err := http.ReadResponse(c.r, nil)
					if err == nil && resp.StatusCode != tt.answer || err != nil && tt.answer != 0 {
						t.Errorf("answered %v, %v", resp, err)
					}
					io.Copy(io.Discard, c.r)
					ended <- time.Since(start)
				}()
				if took := <-ended; took > tt.within {
					t.Errorf("the connection lasted %v", took)
				}
				c.Close()
				sending.Wait()
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A slow network is no attack, nor is a client that comes back after a while.
func TestSteadyClientsAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, httpwire.Config{Handler: mux})
		for _, head := range []string{"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n", "PUT /echo HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x\r\nContent-Length: 200000\r\n\r\n"} {
			c := newClient(p)
			for range 2 {
				go func() {
					io.WriteString(c, head)
					for range 200 { // twice as fast as has to be
						io.WriteString(c, strings.Repeat("b", 1000))
						time.Sleep(500 * time.Millisecond)
					}
				}()
				start := time.Now()
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil || resp.StatusCode != http.StatusOK || time.Since(start) < time.Minute {
					t.Fatalf("%v, %v after %v", resp, err, time.Since(start))
				}
				io.Copy(io.Discard, resp.Body)
				time.Sleep(time.Hour)
			}
			c.Close()
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
