package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"eboot"
)

// keyPromise is where the stable store keeps the founding that this server has
// promised.
var keyPromise = []byte("eboot.promise")

const wayOfReset = "run `eboot cluster reset` on it, which gives it a new id"

// A founding is a list of servers that found a cluster together. A server that
// is willing offers one; when everybody in it offers the very same list, each promises
// it on disk; when everybody has promised, each bootstraps it.
//
// A server promises once in its life. Therefore two lists that are founded have no
// server in common, whatever gossip shows to whom and whoever crashes in between; and a
// server that is a voter of a cluster, knows nothing and has promised nothing has lost
// its log.
type founding struct {
	Servers  []founder `json:"servers,omitempty"` // by id
	Promised bool      `json:"promised,omitempty"`
	Alone    bool      `json:"alone,omitempty"` // an operator asked for a cluster of one
}

type founder struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

func (f founding) encode() string {
	if len(f.Servers) == 0 {
		return ""
	}
	text, err := json.Marshal(f)
	if err != nil {
		return "" // strings and booleans: cannot happen
	}
	return string(text)
}

// decodeFounding: what cannot be read is no offer.
func decodeFounding(text string) founding {
	var f founding
	if text == "" || json.Unmarshal([]byte(text), &f) != nil || len(f.Servers) > maxPeers {
		return founding{}
	}
	return f
}

func (f founding) includes(id string) bool {
	return slices.ContainsFunc(f.Servers, func(s founder) bool { return s.ID == id })
}

func (f founding) members() []Member {
	var servers []Member
	for _, s := range f.Servers {
		servers = append(servers, Member{ID: s.ID, Address: s.Address, Voter: true})
	}
	return servers
}

// check reports what Raft would refuse, before anybody promises it.
func (f founding) check() error {
	at := map[string]string{}
	for _, s := range f.Servers {
		if other, ok := at[s.Address]; ok {
			return fmt.Errorf("servers %s and %s both say that they are at %s: %w", other, s.ID, s.Address, eboot.ErrConflict)
		}
		at[s.Address] = s.ID
	}
	return nil
}

func loadPromise(db database) (founding, error) {
	text, err := db.Get(keyPromise)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return founding{}, nil
	}
	if err != nil {
		return founding{}, err
	}
	f := decodeFounding(string(text))
	if !f.Promised {
		return f, fmt.Errorf("the promise to found a cluster cannot be read: %w", eboot.ErrDamaged)
	}
	return f, nil
}

// position is what a server without a configuration is and has promised.
type position struct {
	self     Peer
	cluster  string // UUID of the cluster that it belonged to; "": none
	mayFound bool
	own      founding
}

// stranger reports whether an answer is of another cluster than the one that this server
// belonged to.
func (p position) stranger(k Knowledge) bool {
	return p.cluster != "" && k.Cluster != "" && k.Cluster != p.cluster
}

// step is what it does next.
type step struct {
	offer     founding // from now on, unless something was promised
	promise   bool     // offer, for good
	bootstrap bool     // what was promised
	admit     bool     // raft may come in
	trouble   error    // why it is not done
}

// decide is Form without its effects: what a server without a configuration does
// when these peers are alive and answered so.
func decide(p position, peers []Peer, a answers) step {
	for _, id := range slices.Sorted(maps.Keys(a.known)) {
		k := a.known[id]
		if m, ok := find(k.Servers, p.self.ID); ok && m.Voter && !p.stranger(k) {
			if p.own.Promised {
				return step{bootstrap: true} // the others were faster
			}
			return step{trouble: fmt.Errorf("this server (%s) is a voter of the cluster that %s knows, and its raft log was lost or wiped; %s, and `eboot cluster remove --replace %s` on the cluster: %w",
				p.self.ID, id, wayOfReset, p.self.ID, eboot.ErrConflict)}
		}
	}
	if s, ok := join(p, a); ok {
		return s
	}
	if p.own.Promised {
		return keepPromise(p, peers, a)
	}
	return offer(p, peers, a)
}

// join is for a server whose peers know a cluster.
func join(p position, a answers) (step, bool) {
	var of, apart Knowledge // the cluster, by its leader if that answers, and one that is another
	for _, id := range slices.Sorted(maps.Keys(a.known)) {
		k := a.known[id]
		switch {
		case len(k.Servers) == 0:
		case p.stranger(k):
			apart = k
			continue
		case of.ID == "":
			of = k
		case !overlap(of.Servers, k.Servers, ""):
			apart = k
		case k.Leader == k.ID:
			of = k
		}
		// Only the leader's word counts: another server may not know yet that this
		// one was made a voter, before it lost its log.
		if _, ok := find(k.Servers, p.self.ID); ok && k.Leader == k.ID && !p.own.Promised {
			return step{admit: true, trouble: fmt.Errorf("this server was added to the cluster and waits for the leader %s to send its log: %w", k.ID, eboot.ErrNoLeader)}, true
		}
	}
	switch {
	case of.ID != "":
	case apart.ID != "":
		return step{trouble: fmt.Errorf("this server belonged to cluster %s and its raft log is gone, and %s knows another cluster of this name, %s (%s), which it does not join: what it serves may be the last copy; save that with `eboot snapshot save FILE`, then give up the other cluster or, to join it, %s: %w",
			p.cluster, apart.ID, apart.Cluster, names(apart.Servers), wayOfReset, eboot.ErrConflict)}, true
	default:
		return step{}, false
	}
	return step{trouble: whyOutside(p, of, apart)}, true
}

// whyOutside says why a server is not in the cluster that its peers know.
func whyOutside(p position, of, apart Knowledge) error {
	if p.own.Promised {
		return fmt.Errorf("this server has promised to found a cluster of %s, and %s knows one without it; %s: %w", names(p.own.members()), of.ID, wayOfReset, eboot.ErrConflict)
	}
	if apart.ID != "" {
		return fmt.Errorf("servers of two clusters of this name are seen: %s knows %s, and %s knows %s; separate them by cluster.name or seeds: %w",
			of.ID, names(of.Servers), apart.ID, names(apart.Servers), eboot.ErrConflict)
	}
	for _, w := range of.Waiting {
		if w.ID == p.self.ID && !w.Passing {
			return fmt.Errorf("the leader %s does not let this server in: %s: %w", of.ID, w.Reason, eboot.ErrConflict)
		}
	}
	leader := of.Leader
	if leader == "" {
		leader = "which it does not have now"
	}
	return fmt.Errorf("this server waits to be added to the cluster of %s by its leader, %s: %w", names(of.Servers), leader, eboot.ErrNoLeader)
}

// keepPromise bootstraps when everybody has promised the same.
func keepPromise(p position, peers []Peer, a answers) step {
	var missing []Member
	for _, s := range p.own.members() {
		if s.ID == p.self.ID {
			continue
		}
		k, ok := a.known[s.ID]
		if !ok {
			missing = append(missing, s)
			continue
		}
		other := decodeFounding(k.Founding)
		if other.Promised && other.encode() != p.own.encode() {
			return step{trouble: fmt.Errorf("this server has promised to found a cluster of %s, and %s one of %s; %s: %w", names(p.own.members()), k.ID, names(other.members()), wayOfReset, eboot.ErrConflict)}
		}
		if !other.Promised {
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 {
		return step{trouble: fmt.Errorf("this server has promised to found a cluster of %s and waits for %s; if one of them is gone for good, %s: %w", names(p.own.members()), names(missing), wayOfReset, eboot.ErrNoLeader)}
	}
	if one, ok := initializing(peers, a); ok {
		return step{trouble: fmt.Errorf("`eboot cluster init` runs on %s: %w", one, eboot.ErrNoLeader)}
	}
	return step{bootstrap: true}
}

// initializing names a peer on which an operator founds a cluster of one.
func initializing(peers []Peer, a answers) (string, bool) {
	for _, peer := range peers {
		if f := decodeFounding(a.known[peer.ID].Founding); f.Alone {
			return peer.ID, true
		}
	}
	return "", false
}

// offer looks for others to found a cluster with, when nobody knows one.
func offer(p position, peers []Peer, a answers) step {
	if silent := silentPeers(peers, a); !p.mayFound && silent != "" {
		return step{trouble: fmt.Errorf("this server (%s) belonged to a cluster and its raft log was lost or wiped; no answer from %s, which may know that cluster: %w", p.self.ID, silent, eboot.ErrNoLeader)}
	}
	if !p.mayFound {
		return step{trouble: fmt.Errorf("this server (%s) belonged to a cluster and its raft log was lost or wiped; none of the servers seen (%s) knows that cluster; when its other servers are well, %s; if there are none, save what it serves with `eboot snapshot save FILE` first: %w",
			p.self.ID, peerNames(peers), wayOfReset, eboot.ErrNoLeader)}
	}
	reason := another(peers, a)
	if p.self.Expect <= 0 && reason != "" {
		return step{trouble: fmt.Errorf("this server waits to be added to a cluster (cluster.expect is 0); %s: %w", reason, eboot.ErrNoLeader)}
	}
	if p.self.Expect <= 0 {
		return step{trouble: fmt.Errorf("this server waits to be added to a cluster (cluster.expect is 0) and none of the servers seen (%s) knows one; found it with `eboot cluster init` on one of them: %w", peerNames(peers), eboot.ErrNoLeader)}
	}
	candidates := []founder{{p.self.ID, p.self.Address}}
	promises := map[string]founding{}
	var different []string
	for _, peer := range peers {
		k, ok := a.known[peer.ID]
		theirs := decodeFounding(k.Founding)
		switch {
		case peer.Expect > 0 && peer.Expect != p.self.Expect:
			different = append(different, fmt.Sprintf("%s says %d", peer.ID, peer.Expect))
		case theirs.Promised:
			promises[theirs.encode()] = theirs
		}
		if ok && peer.Expect == p.self.Expect && len(theirs.Servers) > 0 {
			candidates = append(candidates, founder{peer.ID, peer.Address})
		}
	}
	slices.SortFunc(candidates, func(a, b founder) int { return strings.Compare(a.ID, b.ID) })
	willing := step{offer: founding{Servers: []founder{{p.self.ID, p.self.Address}}}}
	if len(different) > 0 {
		willing.trouble = fmt.Errorf("servers do not agree on how many found the cluster: cluster.expect is %d here and %s; make it the same everywhere: %w", p.self.Expect, strings.Join(different, ", "), eboot.ErrConflict)
		return willing
	}
	if reason != "" {
		willing.trouble = fmt.Errorf("%s: %w", reason, eboot.ErrNoLeader)
		return willing
	}
	if one, ok := initializing(peers, a); ok {
		willing.trouble = fmt.Errorf("`eboot cluster init` runs on %s: %w", one, eboot.ErrNoLeader)
		return willing
	}
	for _, text := range slices.Sorted(maps.Keys(promises)) {
		if f := promises[text]; f.includes(p.self.ID) {
			return agree(p, f.Servers, a)
		}
	}
	for _, f := range promises {
		willing.trouble = fmt.Errorf("%s found a cluster, which this server then joins: %w", names(f.members()), eboot.ErrNoLeader)
		return willing
	}
	if len(candidates) < p.self.Expect {
		willing.trouble = fmt.Errorf("waiting for %d servers to found the cluster, %d seen: %s: %w", p.self.Expect, len(candidates), names(founding{Servers: candidates}.members()), eboot.ErrNoLeader)
		return willing
	}
	chosen := candidates[:p.self.Expect] // the others are added later
	if !(founding{Servers: chosen}).includes(p.self.ID) {
		willing.trouble = fmt.Errorf("%s found a cluster, which this server then joins: %w", names(founding{Servers: chosen}.members()), eboot.ErrNoLeader)
		return willing
	}
	// The first one's list is the list: addresses may be seen differently.
	if first := decodeFounding(a.known[chosen[0].ID].Founding); sameIDs(first.Servers, chosen) {
		chosen = first.Servers
	}
	return agree(p, chosen, a)
}

// another says why a cluster founded now might be one beside another; "" when every peer
// has answered and knows none (R4).
func another(peers []Peer, a answers) string {
	if silent := silentPeers(peers, a); silent != "" {
		return "no cluster is founded before every server seen says that it knows none; no answer from " + silent
	}
	for _, peer := range peers {
		if k := a.known[peer.ID]; k.Cluster != "" {
			return fmt.Sprintf("no cluster is founded beside another: %s at %s knows cluster %s and has lost its raft log", peer.ID, peer.Address, k.Cluster)
		}
	}
	return ""
}

// silentPeers lists those that did not answer, and why.
func silentPeers(peers []Peer, a answers) string {
	var silent []string
	for _, peer := range peers {
		if _, ok := a.known[peer.ID]; !ok {
			silent = append(silent, fmt.Sprintf("%s at %s (%v)", peer.ID, peer.Address, a.silent[peer.ID]))
		}
	}
	return strings.Join(silent, ", ")
}

func sameIDs(a, b []founder) bool {
	return slices.EqualFunc(a, b, func(a, b founder) bool { return a.ID == b.ID })
}

// agree offers a list, and promises it when all in it offer or have promised it.
func agree(p position, servers []founder, a answers) step {
	s := step{offer: founding{Servers: servers}}
	if err := s.offer.check(); err != nil {
		s.trouble = err
		return s
	}
	s.promise = true
	for _, f := range servers {
		theirs := decodeFounding(a.known[f.ID].Founding)
		if f.ID != p.self.ID && !slices.Equal(theirs.Servers, servers) {
			s.promise = false
		}
	}
	s.trouble = fmt.Errorf("founding a cluster of %s: %w", names(s.offer.members()), eboot.ErrNoLeader)
	return s
}
