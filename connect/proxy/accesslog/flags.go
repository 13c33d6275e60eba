package accesslog

// Flags say what went wrong on the way, if anything did.
type Flags uint64

// The flags, each with the two names that it has in logs.
const (
	NoHealthyUpstream                Flags = 1 << iota // UH
	UpstreamConnectionFailure                          // UF
	UpstreamOverflow                                   // UO
	NoRouteFound                                       // NR
	UpstreamRetryLimitExceeded                         // URX
	NoClusterFound                                     // NC
	DurationTimeout                                    // DT
	DownstreamConnectionTermination                    // DC
	FailedLocalHealthCheck                             // LH
	UpstreamRequestTimeout                             // UT
	LocalReset                                         // LR
	UpstreamRemoteReset                                // UR
	UpstreamConnectionTermination                      // UC
	DelayInjected                                      // DI
	FaultInjected                                      // FI
	RateLimited                                        // RL
	UnauthorizedExternalService                        // UAEX
	RateLimitServiceError                              // RLSE
	InvalidEnvoyRequestHeaders                         // IH
	StreamIdleTimeout                                  // SI
	DownstreamProtocolError                            // DPE
	UpstreamProtocolError                              // UPE
	UpstreamMaxStreamDurationReached                   // UMSDR
	ResponseFromCacheFilter                            // RFCF
	NoFilterConfigFound                                // NFCF
	OverloadManagerTerminated                          // OM
	DnsResolutionFailed                                // DF
	DropOverload                                       // DO
	DownstreamRemoteReset                              // DR
	UnconditionalDropOverload                          // UDO
)

var flagNames = [...]struct{ short, long string }{
	{"UH", "NoHealthyUpstream"}, {"UF", "UpstreamConnectionFailure"}, {"UO", "UpstreamOverflow"},
	{"NR", "NoRouteFound"}, {"URX", "UpstreamRetryLimitExceeded"}, {"NC", "NoClusterFound"},
	{"DT", "DurationTimeout"}, {"DC", "DownstreamConnectionTermination"}, {"LH", "FailedLocalHealthCheck"},
	{"UT", "UpstreamRequestTimeout"}, {"LR", "LocalReset"}, {"UR", "UpstreamRemoteReset"},
	{"UC", "UpstreamConnectionTermination"}, {"DI", "DelayInjected"}, {"FI", "FaultInjected"},
	{"RL", "RateLimited"}, {"UAEX", "UnauthorizedExternalService"}, {"RLSE", "RateLimitServiceError"},
	{"IH", "InvalidEnvoyRequestHeaders"}, {"SI", "StreamIdleTimeout"}, {"DPE", "DownstreamProtocolError"},
	{"UPE", "UpstreamProtocolError"}, {"UMSDR", "UpstreamMaxStreamDurationReached"},
	{"RFCF", "ResponseFromCacheFilter"}, {"NFCF", "NoFilterConfigFound"}, {"OM", "OverloadManagerTerminated"},
	{"DF", "DnsResolutionFailed"}, {"DO", "DropOverload"}, {"DR", "DownstreamRemoteReset"},
	{"UDO", "UnconditionalDropOverload"},
}

// String returns the short names joined with commas, or "-" for none.
func (f Flags) String() string { return string(f.append(nil, false)) }

// Long returns the long names joined with commas, or "-" for none.
func (f Flags) Long() string { return string(f.append(nil, true)) }

func (f Flags) append(b []byte, long bool) []byte {
	if f == 0 {
		return append(b, '-')
	}
	first := true
	for i, n := range flagNames {
		if f&(1<<i) == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if long {
			b = append(b, n.long...)
		} else {
			b = append(b, n.short...)
		}
	}
	return b
}

// ParseFlag returns the flag with a short name.
func ParseFlag(short string) (Flags, bool) {
	for i, n := range flagNames {
		if n.short == short {
			return 1 << i, true
		}
	}
	return 0, false
}
