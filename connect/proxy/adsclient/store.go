package adsclient

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
)

// A saved configuration is a magic line, a SHA-256 of what follows, and
// messages with their lengths: first one that names the node, then one for
// each type of resource.
const magic = "sarn-proxy-state-1\n"

// ErrDamaged reports a saved configuration that can't be trusted.
var ErrDamaged = errors.New("saved configuration is damaged")

// Encode returns resources by type URL in the form that Decode reads. It holds
// private keys.
func Encode(node string, resources map[string][]Resource) ([]byte, error) {
	var body []byte
	add := func(m *discoveryv3.DeltaDiscoveryResponse) error {
		b, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		body = binary.AppendUvarint(body, uint64(len(b)))
		body = append(body, b...)
		return nil
	}
	if err := add(&discoveryv3.DeltaDiscoveryResponse{Nonce: node}); err != nil {
		return nil, err
	}
	for _, t := range order {
		m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t}
		for _, r := range resources[t] {
			m.Resources = append(m.Resources, &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Any})
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(body)
	return slices.Concat([]byte(magic), sum[:], body), nil
}

// Decode reads what Encode wrote for the node.
func Decode(b []byte, node string) (map[string][]Resource, error) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok || len(rest) < sha256.Size {
		return nil, ErrDamaged
	}
	want, body := rest[:sha256.Size], rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], want) {
		return nil, ErrDamaged
	}
	out := map[string][]Resource{}
	r := bufio.NewReader(bytes.NewReader(body))
	for first := true; ; first = false {
		n, err := binary.ReadUvarint(r)
		if errors.Is(err, io.EOF) && !first {
			return out, nil
		}
		if err != nil || n > uint64(len(body)) {
			return nil, ErrDamaged
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(r, msg); err != nil {
			return nil, ErrDamaged
		}
		var m discoveryv3.DeltaDiscoveryResponse
		if err := proto.Unmarshal(msg, &m); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if first {
			if m.GetNonce() != node {
				return nil, fmt.Errorf("saved configuration is of another proxy, %q", m.GetNonce())
			}
			continue
		}
		for _, x := range m.GetResources() {
			if x.GetResource() != nil {
				out[m.GetTypeUrl()] = append(out[m.GetTypeUrl()], Resource{Name: x.GetName(), Version: x.GetVersion(), Any: x.GetResource()})
			}
		}
	}
}
