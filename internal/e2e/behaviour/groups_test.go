package behaviour

var groups = []*group{
	&routing, &rewriting, &headers, &retries, &timeouts, &breakers, &outliers, &faults, &limits, &rbacs, &jwts, &authz, &edge, &grpcEdge,
	&hygiene, &hygieneH2, &lenient, &paths, &addresses, &certificates, &protocols, &translation, &mirrors, &replies, &logs, &chains,
}
