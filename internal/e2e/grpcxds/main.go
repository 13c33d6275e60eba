// Command grpcxds is both ends of a gRPC call without a proxy on the client's side.
//
//	grpcxds serve ADDRESS NAME      answers calls with its name
//	grpcxds call TARGET             calls the target for each line of its input, as many times as that says
//
// A line of call's input is a number of calls and a method, "who" for one that is answered with a name
// or "retried" for one that fails twice out of three times. It prints a line of JSON for each: how many calls each
// server answered, by its name, and how many failed, by their status.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/xds"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("usage: grpcxds serve ADDRESS NAME | grpcxds call TARGET")
	}
	var err error
	if os.Args[1] == "serve" {
		err = serve(os.Args[2], os.Args[3])
	} else {
		err = call(os.Args[2])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// server answers calls with its name. Of three EmptyCalls it fails two.
type server struct {
	grpc_testing.UnimplementedTestServiceServer
	name string

	mu     sync.Mutex
	called int
}

func (s *server) UnaryCall(context.Context, *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{ServerId: s.name}, nil
}

func (s *server) EmptyCall(context.Context, *grpc_testing.Empty) (*grpc_testing.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.called++
	if s.called%3 != 0 {
		return nil, status.Error(codes.Unavailable, "try again")
	}
	return &grpc_testing.Empty{}, nil
}

func serve(address, name string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(g, &server{name: name})
	return g.Serve(l)
}

func call(target string) error {
	creds, err := xds.NewClientCredentials(xds.ClientOptions{FallbackCreds: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := grpc_testing.NewTestServiceClient(conn)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var n int
		var method string
		if _, err := fmt.Sscan(in.Text(), &n, &method); err != nil {
			return err
		}
		answers, failures := map[string]int{}, map[string]int{}
		for range n {
			name, err := once(client, method)
			if err != nil {
				failures[status.Code(err).String()]++
				log.Print(err)
			} else {
				answers[name]++
			}
		}
		line, err := json.Marshal(map[string]any{"answers": answers, "failures": failures})
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return in.Err()
}

func once(client grpc_testing.TestServiceClient, method string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if method == "retried" {
		_, err := client.EmptyCall(ctx, &grpc_testing.Empty{})
		return "anybody", err
	}
	r, err := client.UnaryCall(ctx, &grpc_testing.SimpleRequest{})
	return r.GetServerId(), err
}
