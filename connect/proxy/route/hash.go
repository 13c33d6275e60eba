package route

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Hash returns the hash of a request for consistent balancing; ok is false if the route gives none. A cookie is the
// value of a field "set-cookie" for the response; empty if none is to be set.
func (m *Match) Hash(r *message.Request, sourceIP netip.Addr, filterState func(string) string, random func() uint64) (sum uint64, ok bool, cookie string) {
	if m.Route == nil || m.Route.Forward == nil || len(m.Route.Forward.Hash) == 0 {
		return 0, false, ""
	}
	return hash(m.Route.Forward.Hash, r, sourceIP, filterState, random)
}

// hash combines the policies. Without random no cookie is made.
func hash(list []model.HashPolicy, r *message.Request, sourceIP netip.Addr, filterState func(string) string, random func() uint64) (sum uint64, ok bool, set string) {
	for i := range list {
		p := &list[i]
		var one uint64
		found := false
		switch {
		case p.Header != "":
			one, found = hashHeader(p, r)
		case p.Cookie != nil:
			v, _ := cookie(&r.Header, p.Cookie.Name)
			if v == "" && p.Cookie.TTL != nil && random != nil {
				v = fmt.Sprintf("%016x", random())
				set = setCookie(p.Cookie, v)
			}
			one, found = xxhash.Sum64String(v), v != ""
		case p.SourceIP:
			if sourceIP.IsValid() {
				var buf [64]byte
				one, found = xxhash.Sum64(sourceIP.Unmap().AppendTo(buf[:0])), true
			}
		case p.Query != "":
			var v string
			v, found = query(r.Path, p.Query)
			one = xxhash.Sum64String(v)
		case p.FilterState != "":
			if filterState != nil {
				v := filterState(p.FilterState)
				one, found = xxhash.Sum64String(v), v != ""
			}
		}
		if found {
			// Turned, so that two equal policies don't undo each other.
			sum, ok = bits.RotateLeft64(sum, 1)^one, true
		}
		if p.Terminal && ok {
			break
		}
	}
	return sum, ok, set
}

// hashHeader gives the same hash for the same values in any order.
func hashHeader(p *model.HashPolicy, r *message.Request) (uint64, bool) {
	if ps := requestPseudo(p.Header, r); ps.is {
		return xxhash.Sum64String(rewritten(p, ps.value)), ps.present
	}
	var room [4]string
	values := room[:0]
	for v := range r.Header.Values(p.Header) {
		values = append(values, rewritten(p, v))
	}
	switch len(values) {
	case 0:
		return 0, false
	case 1:
		return xxhash.Sum64String(values[0]), true
	}
	slices.Sort(values)
	var sum uint64 // of what came before is the seed of the next
	var d xxhash.Digest
	for _, v := range values {
		d.ResetWithSeed(sum)
		_, _ = d.WriteString(v)
		sum = d.Sum64()
	}
	return sum, true
}

func rewritten(p *model.HashPolicy, v string) string {
	if p.HeaderRewrite == nil {
		return v
	}
	return p.HeaderRewrite.Pattern.ReplaceAllString(v, p.HeaderRewrite.Substitution)
}

func setCookie(c *model.HashCookie, value string) string {
	var b strings.Builder
	b.WriteString(c.Name + `="` + value + `"`)
	if s := int64(c.TTL.Seconds()); s > 0 {
		b.WriteString("; Max-Age=" + strconv.FormatInt(s, 10))
	}
	if c.Path != "" {
		b.WriteString("; Path=" + c.Path)
	}
	for _, a := range c.Attributes {
		b.WriteString("; " + a)
	}
	b.WriteString("; HttpOnly")
	return b.String()
}

// numberIn returns the number in a header that stands there once.
func numberIn(r *message.Request, name string) (uint64, bool) {
	value, n := "", 0
	for v := range r.Header.Values(name) {
		value = v
		n++
	}
	if n != 1 {
		return 0, false
	}
	u, err := strconv.ParseUint(strings.Trim(value, " \t"), 10, 64)
	return u, err == nil
}
