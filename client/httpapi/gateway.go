package httpapi

import (
	"net/http"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
)

// A gatewayService is a service that a gateway is configured to stand for (spec/registry.md section 8.3).
type gatewayService struct {
	Gateway         named
	Service         named
	GatewayKind     string
	Port            int      `json:",omitempty"`
	Protocol        string   `json:",omitempty"`
	Hosts           []string `json:",omitempty"`
	CAFile          string   `json:",omitempty"`
	CertFile        string   `json:",omitempty"`
	KeyFile         string   `json:",omitempty"`
	SNI             string   `json:",omitempty"`
	FromWildcard    bool     `json:",omitempty"`
	AutoHostRewrite bool     `json:",omitempty"`
	catalog.Indexes
}

type named struct{ Name string }

// catalogGatewayServices serves /v1/catalog/gateway-services/:gateway from the gateway's configuration entry.
func (s *Server) catalogGatewayServices(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	gateway := argument(w, r)
	if gateway == "" {
		return nil, errMissingGateway
	}
	e, meta, err := s.gatewayEntry(r, o, gateway)
	if err != nil {
		return nil, err
	}
	links, wildcard := linksOf(gateway, e)
	if wildcard {
		o.MinIndex = 0
		typical, err := ask(s, r, catalog.ServicesCall, &catalog.ServicesRequest{Options: o, Kind: catalog.KindTypical})
		if err != nil {
			return nil, err
		}
		links = expand(links, typical.Services)
		meta.Index = max(meta.Index, typical.Index)
		meta.Filtered = meta.Filtered || typical.Filtered
	}
	s.setQueryMeta(w, &meta)
	return links, nil
}

// gatewayEntry returns the entry that configures a gateway, nil if there is none. A blocking request waits on the
// entry that is there.
func (s *Server) gatewayEntry(r *http.Request, o read.Options, gateway string) (entry.Entry, read.Meta, error) {
	now := o
	now.MinIndex = 0
	var found entry.Kind
	for _, kind := range []entry.Kind{entry.KindTerminatingGateway, entry.KindIngressGateway} {
		resp, err := ask(s, r, entry.GetCall, &entry.GetRequest{Options: now, Kind: kind, Name: gateway})
		if err != nil {
			return nil, read.Meta{}, err
		}
		if resp.Entry.Entry != nil {
			if found = kind; o.MinIndex == 0 {
				return resp.Entry.Entry, resp.Meta, nil
			}
			break
		}
		if o.MinIndex == 0 && kind == entry.KindIngressGateway {
			return nil, resp.Meta, nil
		}
	}
	if found == "" {
		found = entry.KindTerminatingGateway
	}
	resp, err := ask(s, r, entry.GetCall, &entry.GetRequest{Options: o, Kind: found, Name: gateway})
	if err != nil {
		return nil, read.Meta{}, err
	}
	return resp.Entry.Entry, resp.Meta, nil
}

// linksOf lists what an entry links, and whether a wildcard is among it.
func linksOf(gateway string, e entry.Entry) (links []gatewayService, wildcard bool) {
	links = []gatewayService{}
	switch e := e.(type) {
	case *entry.TerminatingGateway:
		for _, l := range e.Services {
			links = append(links, gatewayService{
				Gateway: named{gateway}, Service: named{l.Name}, GatewayKind: catalog.KindTerminatingGateway,
				CAFile: l.CAFile, CertFile: l.CertFile, KeyFile: l.KeyFile, SNI: l.SNI,
				AutoHostRewrite: !l.DisableAutoHostRewrite, Indexes: e.Indexes,
			})
		}
	case *entry.IngressGateway:
		for _, listener := range e.Listeners {
			for _, l := range listener.Services {
				links = append(links, gatewayService{
					Gateway: named{gateway}, Service: named{l.Name}, GatewayKind: catalog.KindIngressGateway,
					Port: listener.Port, Protocol: listener.Protocol, Hosts: l.Hosts, Indexes: e.Indexes,
				})
			}
		}
	}
	return links, slices.ContainsFunc(links, func(l gatewayService) bool { return l.Service.Name == entry.Wildcard })
}

// expand replaces wildcards by the services there are, but for those the same listener names itself.
func expand(links []gatewayService, services map[string][]string) []gatewayService {
	out := []gatewayService{}
	for _, l := range links {
		if l.Service.Name != entry.Wildcard {
			out = append(out, l)
			continue
		}
		sortedKeys(services, func(name string, _ []string) {
			taken := slices.ContainsFunc(links, func(o gatewayService) bool { return o.Service.Name == name && o.Port == l.Port })
			if name == catalog.ServerServiceName || taken {
				return
			}
			one := l
			one.Service.Name, one.FromWildcard = name, true
			out = append(out, one)
		})
	}
	return out
}
