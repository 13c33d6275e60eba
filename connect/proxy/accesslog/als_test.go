package accesslog

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func TestEveryFlagHasItsFieldInTheServiceOfEnvoy(t *testing.T) {
	for i, n := range flagNames {
		f := Flags(1) << i
		if f&(DropOverload|UnconditionalDropOverload) != 0 {
			continue // it has none
		}
		if m := flagsALS(f); proto.Size(m) == 0 {
			t.Errorf("flag %s is lost", n.short)
		}
	}
}

func TestCollectorsGetBatchesAndLoseWhatTheyRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSinks(nil, nil, nil)
		var mu sync.Mutex // guards the two below
		var batches []*alsv3.StreamAccessLogsMessage
		var fail error
		seen := func(next error) []*alsv3.StreamAccessLogsMessage {
			mu.Lock()
			defer mu.Unlock()
			fail = next
			return slices.Clone(batches)
		}
		s.Collect(Collect{NodeID: "n", Send: func(_ context.Context, c *model.LogCollector, request []byte) error {
			var m alsv3.StreamAccessLogsMessage
			if err := proto.Unmarshal(request, &m); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			batches = append(batches, &m)
			return fail
		}})
		conf := &model.AccessLog{Sink: model.SinkCollector, Collector: &model.LogCollector{Service: model.EnvoyTCPLogs, Cluster: "c", Name: "tcp", FlushInterval: 3 * time.Second, FlushSize: 10 << 10}}
		l, err := Compile(conf, s.Writer(conf))
		if err != nil {
			t.Fatal(err)
		}
		if again := *conf; s.Writer(&again) != s.Writer(conf) {
			t.Error("logs of one configuration do not share their collector")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		e := entry
		e.ServerName = strings.Repeat("\xff", 10)
		e.TLSVersion = "TLSv1.3"
		l.Write(&e)
		l.Write(&e)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		got := seen(nil)
		if len(got) != 0 {
			t.Errorf("%d batches before the interval", len(got))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got = seen(nil); len(got) != 1 || len(got[0].GetTcpLogs().GetLogEntry()) != 2 || got[0].GetIdentifier().GetNode().GetId() != "n" {
			t.Fatalf("after the interval: %v", got)
		}
		p := got[0].GetTcpLogs().GetLogEntry()[0]
		if p.GetConnectionProperties().GetSentBytes() != 20 || !p.GetCommonProperties().GetResponseFlags().GetNoHealthyUpstream() ||
			p.GetCommonProperties().GetTlsProperties().GetTlsVersion() != datav3.TLSProperties_TLSv1_3 {
			t.Errorf("entry %v", p)
		}
		seen(errors.New("no"))
		for range 100 {
			l.Write(&e) // more than waits for the interval
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		got = seen(nil)
		if n := s.Dropped(); n == 0 || len(got) != 2 {
			t.Errorf("%d batches, %d lines counted as lost", len(got), n)
		}
		before := s.Dropped()
		l.Write(&e)
		s.Deliver(ctx)
		if got = seen(nil); len(got) != 3 || s.Dropped() != before {
			t.Errorf("after delivery: %d batches, %d lines lost", len(got), s.Dropped())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
