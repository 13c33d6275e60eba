package proxystate

import (
	"sync"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
)

// source returns where the proxy is registered and a function that ends its use.
func (p *proxy) source() (Registrations, func()) {
	if p.key.node == "" {
		return p.s.cfg.Registrations, func() {}
	}
	n := &nodeServices{token: p.key.token, changed: make(chan struct{})}
	cancel := cache.Watch(p.s.cfg.Cache, catalog.NodeServicesCall, &catalog.NodeServicesRequest{
		Options: read.Options{Target: read.Target{Token: p.key.token}}, Node: p.key.node, MergeCentralConfig: true,
	}, n.set)
	return n, cancel
}

// nodeServices are the registrations of a node in the catalog.
type nodeServices struct {
	token string

	mu       sync.Mutex
	services []*catalog.Service
	changed  chan struct{}
}

// set takes an answer of the servers. What is known stays when they are lost.
func (n *nodeServices) set(r *catalog.NodeServicesReply, err error) {
	if err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.services = r.Services
	close(n.changed)
	n.changed = make(chan struct{})
}

// Proxy implements Registrations.
func (n *nodeServices) Proxy(id string) (*catalog.Service, string, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.services {
		if s.ID == id {
			return s, n.token, n.changed
		}
	}
	return nil, "", n.changed
}
