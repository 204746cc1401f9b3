package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// Bounds of a group of servers.
const (
	// maxExpect is how many servers may found a cluster. Each more makes writes
	// slower and saves little; others may still join.
	maxExpect         = 9
	maxSeeds          = 64
	maxRaftMultiplier = 10
)

// Reasons why a key is refused, and what tls.insecure costs.
const (
	oneServer = "has no effect on a server alone; it wants gossip.seeds, cluster.expect above 1, certificates (tls.ca, tls.cert, tls.key), or tls.insecure: true; the last two open the peer and gossip ports"
	together  = "ca, cert and key belong together; `eboot tls ca` and `eboot tls cert` make them"
	exposed   = "anybody who reaches the peer port or the gossip port can read and change everything"
)

// Clustered reports whether this server is one of a group, or may become one:
// its peer and gossip ports are open. It is so with seeds, with an Expect other
// than 1, and with certificates or TLS.Insecure, which let others join a server that was
// alone.
func (c Config) Clustered() bool {
	return c.Cluster.Expect != 1 || len(c.Gossip.Seeds) > 0 || c.TLS.Insecure || c.TLS.Set()
}

// OpensTCP reports whether the API listens on API.Bind: with certificates, or where it was said
// that it may without. The default address is passed over otherwise.
func (c Config) OpensTCP() bool { return c.API.Bind.IsValid() && (c.TLS.Set() || c.API.Insecure) }

// Set reports whether there are certificates.
func (t TLS) Set() bool { return t.CA != "" || t.Cert != "" || t.Key != "" }

// Warnings says in one sentence each what is allowed and should not stay so.
func (c Config) Warnings() []string {
	var w []string
	if c.Clustered() && c.TLS.Insecure {
		w = append(w, "tls.insecure: the servers use no certificates: "+exposed)
	}
	if c.API.Insecure {
		w = append(w, fmt.Sprintf("api.insecure: everybody who reaches %s, which is every user of this machine, is an admin", c.API.Bind))
	}
	if c.Cluster.Expect == 2 {
		w = append(w, "cluster.expect is 2: when either server is lost nothing can be written until it is back, though slaves go on booting; a third server changes that")
	}
	if c.Cluster.Expect > 1 && len(c.Gossip.Seeds) == 0 {
		w = append(w, fmt.Sprintf("cluster.expect is %d and there are no gossip.seeds: this server looks for nobody and waits until the others find it", c.Cluster.Expect))
	}
	return w
}

// clusterProblems holds the rules of a group of servers.
func (c Config) clusterProblems(l *problemList) {
	expect, seeds := c.Cluster.Expect, c.Gossip.Seeds
	l.when(expect < 0 || expect > maxExpect, "cluster.expect", "want 0 to %d, not %d", maxExpect, expect)
	l.when(expect == 1 && len(seeds) > 0, "cluster.expect", "1 founds a cluster of one, which contradicts gossip.seeds")
	l.when(expect == 0 && len(seeds) == 0, "cluster.expect", "0 only ever joins a cluster, and there are no gossip.seeds to find it")
	l.when(c.Cluster.RaftMultiplier < 1 || c.Cluster.RaftMultiplier > maxRaftMultiplier, "cluster.raft_multiplier",
		"want 1 to %d, not %d", maxRaftMultiplier, c.Cluster.RaftMultiplier)

	l.when(len(seeds) > maxSeeds, "gossip.seeds", "want at most %d, not %d", maxSeeds, len(seeds))
	for i, s := range seeds {
		l.when(!isHostPort(s), "gossip.seeds", "%q: want HOST:PORT", abbreviate(s))
		l.when(slices.Contains(seeds[:i], s), "gossip.seeds", "%q: stands twice", abbreviate(s))
	}
	l.when(c.Gossip.KeyFile != "" && !cleanAbsolute(c.Gossip.KeyFile), "gossip.key_file", "want an absolute path without . and .., not %q", abbreviate(c.Gossip.KeyFile))
	portProblems(l, "peer", c.Peer.Bind, c.Peer.Advertise)
	portProblems(l, "gossip", c.Gossip.Bind, c.Gossip.Advertise)
	l.when(overlap(c.Gossip.Bind, c.Peer.Bind), "gossip.bind", "%s: peer.bind (%s) has this port already", c.Gossip.Bind, c.Peer.Bind)
	l.when(c.Clustered() && c.OpensTCP() && overlap(c.API.Bind, c.Peer.Bind), "peer.bind", "%s: api.bind (%s) has this port already", c.Peer.Bind, c.API.Bind)
	l.when(c.Clustered() && c.OpensTCP() && overlap(c.API.Bind, c.Gossip.Bind), "gossip.bind", "%s: api.bind (%s) has this port already", c.Gossip.Bind, c.API.Bind)

	for _, f := range []struct{ key, path string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}} {
		l.when(f.path == "" && c.TLS.Set(), f.key, "is missing: %s", together)
		l.when(f.path != "" && !cleanAbsolute(f.path), f.key, "want an absolute path without . and .., not %q", abbreviate(f.path))
	}
	l.when(c.TLS.Set() && c.TLS.Insecure, "tls.insecure", "true contradicts the certificates (tls.ca, tls.cert, tls.key): choose one")
	l.when(c.TLS.Set() && c.Gossip.KeyFile == "", "gossip.key_file",
		"with certificates gossip is encrypted, too: `eboot keygen gossip FILE` makes a key, the same for every server")
	if c.Clustered() {
		c.insecureProblems(l)
		return
	}
	standard := Default()
	l.when(c.Peer.Bind != standard.Peer.Bind, "peer.bind", oneServer)
	l.when(c.Peer.Advertise != "", "peer.advertise", oneServer)
	l.when(c.Gossip.Bind != standard.Gossip.Bind, "gossip.bind", oneServer)
	l.when(c.Gossip.Advertise != "", "gossip.advertise", oneServer)
	l.when(c.Gossip.KeyFile != "", "gossip.key_file", oneServer)
}

// insecureProblems wants a word from the operator before servers trust whoever
// reaches them. The complaint stands at the key that asks for other servers.
func (c Config) insecureProblems(l *problemList) {
	const unsaid = "several servers want certificates (tls.ca, tls.cert, tls.key; `eboot tls` makes them), or tls.insecure: true, which means that " + exposed
	switch {
	case c.TLS.Insecure, c.TLS.Set():
	case c.Cluster.Expect > 1:
		l.when(true, "cluster.expect", "%d: %s", c.Cluster.Expect, unsaid)
	case len(c.Gossip.Seeds) > 0:
		l.when(true, "gossip.seeds", unsaid)
	}
}

// portProblems checks a port that other servers reach.
func portProblems(l *problemList, section string, bind netip.AddrPort, advertise string) {
	l.when(!bind.IsValid() || bind.Addr().IsMulticast(), section+".bind", "want ADDRESS:PORT of this host, or 0.0.0.0:PORT for all its addresses; not %q", bind)
	l.when(advertise != "" && !isReachable(advertise), section+".advertise", "%q: want HOST:PORT that the other servers can reach", abbreviate(advertise))
}

// overlap reports whether two listeners cannot be bound beside each other.
func overlap(a, b netip.AddrPort) bool {
	if !a.IsValid() || !b.IsValid() || a.Port() != b.Port() || a.Port() == 0 {
		return false
	}
	return a.Addr().Unmap() == b.Addr().Unmap() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func isReachable(s string) bool {
	if !isHostPort(s) {
		return false
	}
	host, _, _ := net.SplitHostPort(s) // isHostPort has split it
	a, err := netip.ParseAddr(host)
	return err != nil || !a.IsUnspecified() && !a.IsMulticast() // err: a name
}
