//go:build race

package proxy_test

const raceEnabled = true // pools of memory lose what they are given now and then, on purpose
