package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"eboot"
)

// Bounds of values that are free otherwise.
const (
	maxConnections = 1 << 20
	maxRoots       = 64
	maxWait        = 24 * time.Hour
	maxKeep        = 16 << 10
	maxTrustedKeys = 64
	minWatch       = 10 * time.Second    // a look takes up to four
	leastMaxStale  = 5 * time.Second     // longer than a change of leader takes, with a raft_multiplier of 1
	mostMaxStale   = 30 * 24 * time.Hour // beyond that it bounds nothing
	minPinAge      = time.Hour
	// answersEnd is the silence after which a stock slave stops collecting answers
	// (inet_boot.hrl, EBOOT_REQUEST_DELAY; erl_prim_loader.erl, find_collect).
	answersEnd = 500 * time.Millisecond
	// maxSocketPath is the size of sun_path less its NUL (unix(7)).
	maxSocketPath = 107
)

// problem is what is wrong with the value of one key.
type problem struct {
	key  string
	text string
}

func (p problem) String() string { return p.key + ": " + p.text }

// Check reports everything that is wrong with c, a line each; the error wraps
// eboot.ErrInvalid. Load has done it; a Config made otherwise must be checked.
func (c Config) Check() error {
	var errs []error
	for _, p := range c.problems() {
		errs = append(errs, fmt.Errorf("%s: %w", p, eboot.ErrInvalid))
	}
	return errors.Join(errs...)
}

// problemList collects problems.
type problemList []problem

func (l *problemList) when(wrong bool, key, format string, args ...any) {
	if wrong {
		*l = append(*l, problem{key: key, text: fmt.Sprintf(format, args...)})
	}
}

func (c Config) problems() []problem {
	var l problemList
	l.when(!cleanAbsolute(c.DataDir), "data_dir", "want an absolute path without . and .., not %q", c.DataDir)
	if err := eboot.CheckName("name", c.Cluster.Name); err != nil {
		l.when(true, "cluster.name", "want 1 to 64 letters, digits and . _ + ~ -, beginning with a letter or digit; not %q", abbreviate(c.Cluster.Name))
	}
	c.Boot.problems(&l)
	c.apiProblems(&l)
	c.clusterProblems(&l)
	l.when(c.Publish.Wait < 0 || c.Publish.Wait > maxWait, "publish.wait", "want 0s to %s, not %s", maxWait, c.Publish.Wait)
	least := leastMaxStale * time.Duration(max(1, c.Cluster.RaftMultiplier))
	l.when(c.Whitelist.MaxStale != 0 && (c.Whitelist.MaxStale < least || c.Whitelist.MaxStale > mostMaxStale), "whitelist.max_stale",
		"want 0s (no bound), or %s (5s for each cluster.raft_multiplier: a change of leader must not silence servers) to %s, not %s", least, mostMaxStale, c.Whitelist.MaxStale)
	c.Trust.problems(&l)
	l.when(c.Retention.Keep < 0 || c.Retention.Keep > maxKeep, "retention.keep", "want 0 (all) to %d, not %d", maxKeep, c.Retention.Keep)
	l.when(c.Retention.PinMaxAge < minPinAge, "retention.pin_max_age", "want %s or more, not %s", minPinAge, c.Retention.PinMaxAge)
	l.when(!slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, c.Log.Level), "log.level",
		"want trace, debug, info, warn or error; not %q", abbreviate(c.Log.Level))
	l.when(c.Log.Format != LogText && c.Log.Format != LogJSON, "log.format", "want %s or %s, not %q", LogText, LogJSON, abbreviate(string(c.Log.Format)))
	return l
}

func (b Boot) problems(l *problemList) {
	l.when(len(b.Bind) == 0, "boot.bind", "want at least one address")
	for i, a := range b.Bind {
		l.when(!a.Is4(), "boot.bind", "%q: EBOOT works over IPv4 only", a)
		l.when(a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}), "boot.bind", "%q: want an address of this host, or 0.0.0.0 for all", a)
		l.when(slices.Contains(b.Bind[:i], a), "boot.bind", "%q: stands twice", a)
		l.when(a == netip.IPv4Unspecified() && len(b.Bind) > 1, "boot.bind", "0.0.0.0 holds all addresses and must stand alone")
	}
	if why := b.TCPPorts.problem(); why != "" {
		l.when(true, "boot.tcp_ports", "%s", why)
	}

	switch b.Priority.Mode {
	case PrioritySpread:
		l.when(len(b.Priority.Order) > 0, "boot.priority.order", "is used only with mode %s", PriorityOrdered)
	case PriorityOrdered:
		l.when(len(b.Priority.Order) == 0, "boot.priority.order", "mode %s wants the servers, best first", PriorityOrdered)
	default:
		l.when(true, "boot.priority.mode", "want %s or %s, not %q", PrioritySpread, PriorityOrdered, abbreviate(string(b.Priority.Mode)))
	}
	for i, s := range b.Priority.Order {
		l.when(strings.TrimSpace(s) != s || s == "", "boot.priority.order", "%q: want the id of a server", abbreviate(s))
		l.when(slices.Contains(b.Priority.Order[:i], s), "boot.priority.order", "%q: stands twice", abbreviate(s))
	}
	l.when(b.Priority.Pace < time.Millisecond || b.Priority.Pace >= answersEnd, "boot.priority.pace",
		"want 1ms or more and less than %s, after which a slave has chosen; not %s", answersEnd, b.Priority.Pace)

	l.when(len(b.Roots) == 0 || len(b.Roots) > maxRoots, "boot.roots", "want 1 to %d directories, not %d", maxRoots, len(b.Roots))
	for i, r := range b.Roots {
		l.when(!cleanAbsolute(r) || r == "/", "boot.roots", "%q: want an absolute path without . and .., and not / itself", abbreviate(r))
		l.when(slices.Contains(b.Roots[:i], r), "boot.roots", "%q: stands twice", abbreviate(r))
	}

	l.when(b.Watch != 0 && (b.Watch < minWatch || b.Watch > maxWait), "boot.watch", "want 0s (nobody looks), or %s to %s, not %s", minWatch, maxWait, b.Watch)

	l.when(b.Limits.Connections < 1 || b.Limits.Connections > maxConnections, "boot.limits.connections", "want 1 to %d, not %d", maxConnections, b.Limits.Connections)
	l.when(b.Limits.ConnectionsPerAddress < 1 || b.Limits.ConnectionsPerAddress > b.Limits.Connections, "boot.limits.connections_per_address",
		"want 1 to boot.limits.connections (%d), not %d", b.Limits.Connections, b.Limits.ConnectionsPerAddress)
}

func (c Config) apiProblems(l *problemList) {
	a := c.API
	l.when(!c.OpensTCP() && a.Socket == "", "api.socket", "want a socket: without certificates (tls.ca, tls.cert, tls.key) the API is on no TCP port, and operators must reach the server")
	l.when(a.Insecure && c.TLS.Set(), "api.insecure", "has no effect with certificates (tls.ca, tls.cert, tls.key)")
	l.when(a.Insecure && !a.Bind.IsValid(), "api.insecure", "has no effect without an address in api.bind")
	open := a.Bind.IsValid() && !c.TLS.Set()
	switch {
	case open && !a.Bind.Addr().Unmap().IsLoopback():
		l.when(true, "api.bind", "%s: on a network the API wants certificates (tls.ca, tls.cert, tls.key); without, it is on the Unix socket (api.socket)", a.Bind)
	case open && !a.Insecure:
		l.when(a.Bind != defaultAPI(), "api.bind", "%s: without certificates (tls.ca, tls.cert, tls.key) the API is on the Unix socket (api.socket) only; for a trial, api.insecure: true opens this address to everybody on this machine", a.Bind)
	}
	l.when(a.Socket != "" && !cleanAbsolute(a.Socket), "api.socket", "want an absolute path without . and .., not %q", abbreviate(a.Socket))
	l.when(len(a.Socket) > maxSocketPath, "api.socket", "longer than the %d bytes of a Unix socket's path", maxSocketPath)
}

func (t Trust) problems(l *problemList) {
	l.when(len(t.Keys) > maxTrustedKeys, "trust.keys", "want at most %d, not %d", maxTrustedKeys, len(t.Keys))
	for i, k := range t.Keys {
		l.when(!cleanAbsolute(k), "trust.keys", "want absolute paths without . and .., not %q", abbreviate(k))
		l.when(slices.Contains(t.Keys[:i], k), "trust.keys", "%q: stands twice", abbreviate(k))
	}
	if len(t.Keys) == 0 {
		l.when(t.Threshold != 1, "trust.threshold", "has no effect without trust.keys")
		return
	}
	l.when(t.Threshold < 1 || t.Threshold > len(t.Keys), "trust.threshold", "want 1 to the number of trust.keys (%d), not %d", len(t.Keys), t.Threshold)
}

func cleanAbsolute(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && utf8.ValidString(p) && strings.IndexByte(p, 0) < 0
}
