// Package behaviour runs each rule that the built-in proxy shares with Envoy twice, against the built-in proxy and
// against Envoy, from one bootstrap file, and compares what clients, upstreams and access logs see.
//
// A case is a row in a table: its route, its cluster, what the upstream answers and what the client sends. What came of
// it at Envoy is kept in testdata, a file per group of cases; `go test -update -proxy envoy` writes these files anew.
// A case that says why Sarn differs has a second section there, which is Sarn's; without such a reason a difference
// fails.
//
//	go test ./internal/e2e/behaviour                          both proxies
//	go test ./internal/e2e/behaviour -proxy sarn -run /retry  one proxy, some groups or cases
package behaviour
