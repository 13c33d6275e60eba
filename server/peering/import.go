package peering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Limits of texts in what a peer sends.
const (
	maxText      = 256
	maxTags      = 256
	maxAddresses = 64
)

// checkText refuses a text that is too long or holds what is not to be shown.
func checkText(what, s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%s is longer than %d bytes", what, maxText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s holds control characters", what)
	}
	return nil
}

// checkServiceName refuses what cannot be the name of a service that is imported.
func checkServiceName(s string) error {
	switch {
	case s == "" || s == "*":
		return errors.New("a service needs a name")
	case s == catalog.ServerServiceName:
		return errors.New("the servers are not exported")
	}
	return checkText("the name of a service", s)
}

// bundle checks whom to trust for a peer; expected is its trust domain if that is known.
func bundle(d *bundleData, expected string) (*peering.Bundle, error) {
	if !peering.IsTrustDomain(d.TrustDomain) {
		return nil, errors.New("the trust domain is not valid")
	}
	if expected != "" && !connect.SameTrustDomain(d.TrustDomain, expected) {
		return nil, errors.New("the trust domain is not that of the peering")
	}
	if err := peering.CheckRoots(d.Roots); err != nil {
		return nil, err
	}
	return &peering.Bundle{TrustDomain: strings.ToLower(d.TrustDomain), Partition: "default", RootPEMs: d.Roots}, nil
}

// imported checks a service of a peer and makes it one of this cluster's imports; trustDomain is the peer's, empty while
// it is not known.
func imported(peer, name string, d *serviceData, trustDomain string) (*peering.Import, error) {
	if err := checkServiceName(name); err != nil {
		return nil, err
	}
	if len(d.Instances) > maxInstances || len(d.Gateways) > maxInstances {
		return nil, fmt.Errorf("a service has more than %d instances", maxInstances)
	}
	out := &peering.Import{Peer: peer, Service: name}
	for _, i := range d.Instances {
		in, err := instance(peer, name, i)
		if err != nil {
			return nil, err
		}
		out.Instances = append(out.Instances, in)
	}
	if len(d.Gateways) == 0 {
		order(out.Instances)
		return out, unique(out.Instances)
	}
	meta, err := peerMeta(d, trustDomain)
	if err != nil {
		return nil, err
	}
	for _, g := range d.Gateways {
		in, err := instance(peer, name+"-sidecar-proxy", g)
		if err != nil {
			return nil, err
		}
		in.Service.Kind, in.Service.Proxy.DestinationServiceName = catalog.KindConnectProxy, name
		in.Service.Connect.PeerMeta = meta
		out.Gateways = append(out.Gateways, in)
	}
	order(out.Instances)
	order(out.Gateways)
	return out, errors.Join(unique(out.Instances), unique(out.Gateways))
}

// peerMeta checks how a service is reached in the mesh, and returns that as instances carry it.
func peerMeta(d *serviceData, trustDomain string) (json.RawMessage, error) {
	if trustDomain == "" {
		return nil, errors.New("whom to trust for its members is not known yet")
	}
	if len(d.SNI) == 0 || len(d.SNI) > 8 || len(d.SpiffeID) == 0 || len(d.SpiffeID) > 64 {
		return nil, errors.New("a service in the mesh needs server names and identities, and not too many")
	}
	for _, sni := range d.SNI {
		if len(sni) > 253 || !strings.HasSuffix(strings.ToLower(sni), ".external."+strings.ToLower(trustDomain)) || strings.ContainsFunc(sni, notInSNI) {
			return nil, errors.New("a server name is not one of the peer's trust domain")
		}
	}
	for _, text := range d.SpiffeID {
		if len(text) > 2*maxText {
			return nil, errors.New("an identity is too long")
		}
		id, err := connect.ParseID(text)
		if err != nil || !connect.SameTrustDomain(id.TrustDomain(), trustDomain) || id.Kind() != connect.Service && id.Kind() != connect.MeshGateway {
			return nil, errors.New("an identity is not that of a member of the peer's trust domain")
		}
	}
	switch d.Protocol {
	case "tcp", "http", "http2", "grpc":
	default:
		return nil, errors.New("the protocol of a service is not known")
	}
	return json.Marshal(&peering.Meta{SNI: d.SNI, SpiffeID: d.SpiffeID, Protocol: d.Protocol})
}

func notInSNI(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
}

// instance checks an instance of a peer and makes it one of an import.
func instance(peer, service string, d *instanceData) (*catalog.Instance, error) {
	if d == nil {
		return nil, errors.New("an instance is missing")
	}
	if d.Node == "" || d.ID == "" {
		return nil, errors.New("an instance has no node or no ID")
	}
	if d.NodeID != "" && catalog.CheckUUID(d.NodeID) != nil {
		return nil, errors.New("the ID of a node is no UUID")
	}
	if d.Port < 0 || d.Port > 65535 {
		return nil, errors.New("a port is not valid")
	}
	if len(d.Tags) > maxTags || len(d.Addresses) > maxAddresses || len(d.NodeAddresses) > maxAddresses {
		return nil, errors.New("an instance has too many tags or addresses")
	}
	texts := map[string]string{
		"the name of a node": d.Node, "the address of a node": d.NodeAddress, "a datacenter": d.Datacenter,
		"the ID of an instance": d.ID, "the address of an instance": d.Address,
	}
	for _, t := range d.Tags {
		if err := checkText("a tag", t); err != nil {
			return nil, err
		}
	}
	for tag, a := range d.NodeAddresses {
		if err := errors.Join(checkText("a tag", tag), checkText("an address", a)); err != nil {
			return nil, err
		}
	}
	for tag, a := range d.Addresses {
		if err := errors.Join(checkText("a tag", tag), checkText("an address", a.Address)); err != nil {
			return nil, err
		}
		if a.Port < 0 || a.Port > 65535 {
			return nil, errors.New("a port is not valid")
		}
	}
	if l := d.Locality; l != nil {
		texts["a region"], texts["a zone"] = l.Region, l.Zone
	}
	for what, text := range texts {
		if err := checkText(what, text); err != nil {
			return nil, err
		}
	}
	for _, meta := range []map[string]string{d.NodeMeta, d.Meta} {
		maps.DeleteFunc(meta, func(key, _ string) bool { return strings.HasPrefix(key, "consul-") }) // this cluster's own
		if catalog.ValidateMeta(meta, catalog.KindTypical) != nil {
			return nil, errors.New("the metadata of an instance is not valid")
		}
	}
	in := &catalog.Instance{
		Node: &catalog.Node{
			ID: strings.ToLower(d.NodeID), Node: d.Node, Address: d.NodeAddress, Datacenter: d.Datacenter, TaggedAddresses: d.NodeAddresses,
			Meta: d.NodeMeta, Locality: d.Locality, PeerName: peer,
		},
		Service: &catalog.Service{
			ID: d.ID, Service: service, Tags: d.Tags, Address: d.Address, Port: d.Port, TaggedAddresses: d.Addresses, Meta: d.Meta,
			Weights: d.Weights, PeerName: peer,
		},
	}
	for _, of := range []struct{ id, service, status string }{{"", "", d.NodeStatus}, {d.ID, service, d.Status}} {
		switch of.status {
		case "":
		case catalog.Passing, catalog.Warning, catalog.Critical:
			in.Checks = append(in.Checks, peering.Overall(peer, d.Node, of.id, of.service, of.status))
		default: // what is not known to be good is not
			in.Checks = append(in.Checks, peering.Overall(peer, d.Node, of.id, of.service, catalog.Critical))
		}
	}
	return in, nil
}

func order(list []*catalog.Instance) {
	slices.SortFunc(list, func(a, b *catalog.Instance) int {
		if c := strings.Compare(strings.ToLower(a.Node.Node), strings.ToLower(b.Node.Node)); c != 0 {
			return c
		}
		return strings.Compare(a.Service.ID, b.Service.ID)
	})
}

// unique refuses a list, in order, that has an instance twice.
func unique(list []*catalog.Instance) error {
	for n := 1; n < len(list); n++ {
		a, b := list[n-1], list[n]
		if strings.EqualFold(a.Node.Node, b.Node.Node) && a.Service.ID == b.Service.ID {
			return errors.New("an instance is there twice")
		}
	}
	return nil
}

// serviceNames checks the list of the services that are exported to this cluster, and returns it in lower case.
func serviceNames(data []byte) (map[string]bool, error) {
	var names []string
	if err := decode(data, &names); err != nil {
		return nil, err
	}
	if len(names) > maxServices {
		return nil, fmt.Errorf("more than %d services", maxServices)
	}
	set := make(map[string]bool, len(names))
	for _, n := range names {
		if err := checkServiceName(n); err != nil {
			return nil, err
		}
		if set[strings.ToLower(n)] {
			return nil, errors.New("a service is listed twice")
		}
		set[strings.ToLower(n)] = true
	}
	return set, nil
}

func lower(s string) string { return strings.ToLower(s) }

func equal(a, b []string) bool { return slices.Equal(a, b) }

func sameBundle(a, b *peering.Bundle) bool {
	return strings.EqualFold(a.TrustDomain, b.TrustDomain) && slices.Equal(a.RootPEMs, b.RootPEMs)
}

// sameImport reports whether what is stored of a service is what arrived: then there is nothing to write to the log.
func sameImport(stored, arrived *peering.Import) bool {
	if len(stored.Instances) != len(arrived.Instances) || len(stored.Gateways) != len(arrived.Gateways) || stored.Service != arrived.Service {
		return false
	}
	a, aerr := rpc.Marshal(plain(stored))
	b, berr := rpc.Marshal(plain(arrived))
	return aerr == nil && berr == nil && bytes.Equal(a, b)
}

// plain returns an import without what the state adds to it: indexes, virtual addresses and default weights.
func plain(i *peering.Import) *peering.Import {
	strip := func(list []*catalog.Instance) (out []*catalog.Instance) {
		for _, in := range list {
			n, s := *in.Node, *in.Service
			n.Indexes, s.Indexes = catalog.Indexes{}, catalog.Indexes{}
			if s.Weights == nil {
				s.Weights = catalog.DefaultWeights()
			}
			s.TaggedAddresses = maps.Clone(s.TaggedAddresses)
			delete(s.TaggedAddresses, catalog.VirtualAddressTag)
			if len(s.TaggedAddresses) == 0 {
				s.TaggedAddresses = nil
			}
			own := &catalog.Instance{Node: &n, Service: &s}
			for _, c := range in.Checks {
				k := *c
				k.Indexes = catalog.Indexes{}
				own.Checks = append(own.Checks, &k)
			}
			out = append(out, own)
		}
		return out
	}
	return &peering.Import{Service: i.Service, Instances: strip(i.Instances), Gateways: strip(i.Gateways)}
}
