package accesslog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var entry = Entry{
	Start: time.Date(2026, 3, 4, 5, 6, 7, 890_123_456, time.UTC), Duration: 1500 * time.Millisecond,
	BytesReceived: 10, BytesSent: 20, Flags: NoHealthyUpstream | UpstreamRetryLimitExceeded,
	UpstreamHost: "10.0.0.1:80", UpstreamCluster: "db", DownstreamRemote: "[::1]:5000", ServerName: "a\nb",
}

func TestTextFormats(t *testing.T) {
	tests := []struct{ format, want string }{
		{"%DURATION% %BYTES_RECEIVED%/%BYTES_SENT%", "1500 10/20"},
		{"%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%", "URX,UH UpstreamRetryLimitExceeded,NoHealthyUpstream"},
		{"100%%", "100%"},
		{"%REQ(:PATH)% %REQ(X?Y):5%", "- -"},
		{"%UPSTREAM_CLUSTER:1%", "d"},
		{"%START_TIME%", "2026-03-04T05:06:07.890Z"},
		{"%START_TIME(%Y/%m/%dT%H:%M:%S.%3f %s %E6S)%", ""},
		{"%START_TIME(%s.%6f)%", "1772600767.890123"},
		{"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", "::1 5000"},
		{"%REQUESTED_SERVER_NAME%", `a\nb`},
		{"%UPSTREAM_HOST_NAME%", "-"},
	}
	for _, tt := range tests {
		f, err := ParseFormat(tt.format)
		if err != nil {
			t.Errorf("%s: %v", tt.format, err)
			continue
		}
		if got := string(f.Append(nil, &entry)); tt.want != "" && got != tt.want {
			t.Errorf("%s gives %q, want %q", tt.format, got, tt.want)
		}
	}
}

func TestPathsAndMetadata(t *testing.T) {
	var r message.Request
	r.Path = "/new?a=b"
	r.Header.Add("x-envoy-original-path", "/old?a=b")
	md := func(v string) model.Metadata { return model.Metadata{"m": {"k": v}} }
	e := Entry{HTTP: &HTTP{Request: &r, RouteMetadata: md("route"), ClusterMetadata: md("cluster"), HostMetadata: md("host"), Metadata: md("dynamic")}}
	for format, want := range map[string]string{
		"%PATH% %PATH(NQ)% %PATH(WQ:PATH)% %PATH(NQ:ORIG)%":                                                   "/old?a=b /old /new?a=b /old",
		"%METADATA(ROUTE:m:k)% %METADATA(CLUSTER:m:k)% %METADATA(UPSTREAM_HOST:m:k)% %METADATA(DYNAMIC:m:k)%": "route cluster host dynamic",
	} {
		f, err := ParseFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.Append(nil, &e)); got != want {
			t.Errorf("%s gives %q, want %q", format, got, want)
		}
	}
}

func TestBadFormats(t *testing.T) {
	for format, want := range map[string]string{
		"%NOPE%": "unknown operator NOPE", "%DURATION": "no closing %", "%REQ%": "needs an argument",
		"%DURATION(x)%": "takes no argument", "%REQ(a%": "no closing bracket", "%DURATION:x%": "no positive number",
		"%PATH(X)%": "neither WQ nor NQ", "%PATH(NQ:X)%": "none of ORIG", "%METADATA(X:a)%": "is not known here",
		"% %": "no operator", "%START_TIME(%Q)%": "unknown %Q",
	} {
		if _, err := ParseFormat(format); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want it to say %q", format, err, want)
		}
	}
}

func TestJSONKeepsNumbersAndNulls(t *testing.T) {
	var out bytes.Buffer
	l, err := Compile(&model.AccessLog{JSON: map[string]any{
		"ms": "%DURATION%", "path": "%REQ(:PATH)%", "both": "%UPSTREAM_CLUSTER%-%DURATION%", "sub": map[string]any{"n": 1.5}, "sni": "%REQUESTED_SERVER_NAME%",
	}}, &out)
	if err != nil {
		t.Fatal(err)
	}
	l.Write(&entry)
	if want := `{"both":"db-1500","ms":1500,"path":null,"sni":"a\nb","sub":{"n":1.5}}` + "\n"; out.String() != want {
		t.Errorf("got %s want %s", out.String(), want)
	}
}

func TestFilters(t *testing.T) {
	flags := func(names ...string) *model.LogFilter { return &model.LogFilter{Flags: &names} }
	slow := &model.LogFilter{Duration: &model.Comparison{Op: model.CompareAtLeast, Value: 1500}}
	tests := []struct {
		name   string
		filter *model.LogFilter
		want   bool
	}{
		{"none", nil, true},
		{"a flag that is set", flags("NR", "UH"), true},
		{"a flag that is not", flags("NR"), false},
		{"any flag", flags(), true},
		{"duration", slow, true},
		{"and", &model.LogFilter{And: []*model.LogFilter{slow, flags("NR")}}, false},
		{"or", &model.LogFilter{Or: []*model.LogFilter{slow, flags("NR")}}, true},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		l, err := Compile(&model.AccessLog{Text: "x", Filter: tt.filter}, &out)
		if err != nil {
			t.Fatal(err)
		}
		l.Write(&entry)
		if got := out.Len() > 0; got != tt.want {
			t.Errorf("%s: logged %v, want %v", tt.name, got, tt.want)
		}
	}
}

type file struct{ *bytes.Buffer }

func (file) Close() error { return nil }

func TestSinksWriteWithinASecondAndAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f file
		f.Buffer = new(bytes.Buffer)
		opened := 0
		s := NewSinks(nil, nil, func(path string) (io.WriteCloser, error) {
			if path != "/log" {
				return nil, errors.New("unexpected path")
			}
			opened++
			return f, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		w := s.Writer(&model.AccessLog{Sink: model.SinkFile, Path: "/log"})
		io.WriteString(w, "one\n")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if f.String() != "one\n" {
			t.Errorf("after a second the file has %q", f.String())
		}
		io.WriteString(w, "two\n")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if f.String() != "one\ntwo\n" || opened != 2 {
			t.Errorf("at the end the file has %q, opened %d times", f.String(), opened)
		}
		io.WriteString(w, strings.Repeat("x", maxQueued))
		io.WriteString(w, "no room")
		if s.Dropped() != 1 {
			t.Errorf("%d lines dropped, want 1", s.Dropped())
		}
	})
}

func TestReopenLetsGoOfAFileUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		s := NewSinks(nil, nil, func(string) (io.WriteCloser, error) {
			opened++
			return file{new(bytes.Buffer)}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		w := s.Writer(&model.AccessLog{Sink: model.SinkFile, Path: "/log"})
		for range 3 {
			io.WriteString(w, strings.Repeat("x", flushSize))
			synctest.Wait()
		}
		if opened != 1 {
			t.Errorf("under load the file was opened %d times, want once", opened)
		}
		s.Reopen()
		synctest.Wait()
		io.WriteString(w, strings.Repeat("x", flushSize))
		synctest.Wait()
		if opened != 2 {
			t.Errorf("after reopening the file was opened %d times, want 2", opened)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseFormat(f *testing.F) {
	f.Add(DefaultFormat)
	f.Add("%START_TIME(%s.%3f)% %REQ(A?B):3% %%")
	f.Fuzz(func(t *testing.T, s string) {
		format, err := ParseFormat(s)
		if err != nil {
			return
		}
		for _, c := range format.Append(nil, &entry) {
			if c == '\n' && !strings.Contains(s, "\n") {
				t.Errorf("format %q gave a line end that it does not have", s)
			}
		}
	})
}
