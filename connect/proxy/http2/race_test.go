//go:build race

package http2_test

const raceEnabled = true // what the race detector allocates is counted, too
