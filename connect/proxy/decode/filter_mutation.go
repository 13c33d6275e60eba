//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headermutation"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var headerMutationFilter = httpFilter{
	name:  "envoy.filters.http.header_mutation",
	proto: (*mutationv3.HeaderMutation)(nil),
	config: with(func(r *run, path string, m *mutationv3.HeaderMutation) model.FilterConfig {
		r.only(path, m, "mutations most_specific_header_mutations_wins", "")
		c := r.mutations(join(path, "mutations"), m.GetMutations())
		c.MostSpecificWins = m.GetMostSpecificHeaderMutationsWins()
		return c
	}),
	routeProto: (*mutationv3.HeaderMutationPerRoute)(nil),
	route: with(func(r *run, path string, m *mutationv3.HeaderMutationPerRoute) model.FilterConfig {
		return r.mutations(join(path, "mutations"), m.GetMutations())
	}),
}

func (r *run) mutations(path string, m *mutationv3.Mutations) *headermutation.Config {
	r.only(path, m, `request_mutations query_parameter_mutations response_mutations response_trailers_mutations
		request_trailers_mutations`, "")
	list := func(field string, from []*mutationrulesv3.HeaderMutation) (out []headermutation.Mutation) {
		for i, x := range from {
			p := index(join(path, field), i)
			switch a := x.GetAction().(type) {
			case *mutationrulesv3.HeaderMutation_Remove:
				for _, e := range r.removals(join(p, "remove"), []string{a.Remove}) {
					out = append(out, headermutation.Mutation{Edit: e})
				}
			case *mutationrulesv3.HeaderMutation_Append:
				out = append(out, headermutation.Mutation{Edit: r.addition(join(p, "append"), a.Append)})
			case *mutationrulesv3.HeaderMutation_RemoveOnMatch_:
				s := r.stringMatch(join(p, "remove_on_match.key_matcher"), a.RemoveOnMatch.GetKeyMatcher())
				out = append(out, headermutation.Mutation{RemoveMatch: &s})
			default:
				r.errorf(p, "mutation %T is not supported", a)
			}
		}
		return out
	}
	c := &headermutation.Config{
		Request:          list("request_mutations", m.GetRequestMutations()),
		Response:         list("response_mutations", m.GetResponseMutations()),
		RequestTrailers:  list("request_trailers_mutations", m.GetRequestTrailersMutations()),
		ResponseTrailers: list("response_trailers_mutations", m.GetResponseTrailersMutations()),
	}
	for i, x := range m.GetQueryParameterMutations() {
		c.Query = append(c.Query, r.queryMutation(index(join(path, "query_parameter_mutations"), i), x))
	}
	return c
}

func (r *run) queryMutation(path string, m *corev3.KeyValueMutation) headermutation.QueryMutation {
	if m.GetRemove() != "" {
		return headermutation.QueryMutation{Remove: true, Name: m.GetRemove()}
	}
	a, p := m.GetAppend(), join(path, "append")
	r.only(p, a, "record entry action", "")
	q := headermutation.QueryMutation{Name: a.GetRecord().GetKey(), Value: a.GetRecord().GetValue().GetStringValue()}
	if a.GetRecord() == nil {
		q.Name, q.Value = a.GetEntry().GetKey(), string(a.GetEntry().GetValue())
	}
	if q.Name == "" {
		r.errorf(p, "names no parameter")
	}
	if _, err := accesslog.ParseFormat(q.Value); err != nil {
		r.errorf(p, "%w", err)
	}
	switch a.GetAction() {
	case corev3.KeyValueAppend_APPEND_IF_EXISTS_OR_ADD:
	case corev3.KeyValueAppend_ADD_IF_ABSENT:
		q.Action = model.AddIfAbsent
	case corev3.KeyValueAppend_OVERWRITE_IF_EXISTS_OR_ADD:
		q.Action = model.OverwriteOrAdd
	case corev3.KeyValueAppend_OVERWRITE_IF_EXISTS:
		q.Action = model.OverwriteIfExists
	default:
		r.errorf(join(p, "action"), "%d is unknown", a.GetAction())
	}
	return q
}
