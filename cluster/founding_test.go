package cluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"eboot"
)

func listOf(ids ...string) founding {
	var f founding
	for _, id := range ids {
		f.Servers = append(f.Servers, founder{ID: id, Address: id + ":4381"})
	}
	return f
}

func (f founding) promised() founding { f.Promised = true; return f }

// around makes what server "b" of expect 3 sees: peers of expect 3 that answer so.
func around(known ...Knowledge) ([]Peer, answers) {
	a := answers{known: map[string]Knowledge{}, silent: map[string]error{}}
	var peers []Peer
	for _, k := range known {
		peers = append(peers, Peer{ID: k.ID, Address: k.ID + ":4381", Expect: 3})
		a.known[k.ID] = k
	}
	return peers, a
}

func offering(id string, f founding) Knowledge { return Knowledge{ID: id, Founding: f.encode()} }

func members(leader, id string, ids ...string) Knowledge {
	k := Knowledge{ID: id, Leader: leader, LastIndex: 9, Applied: 9}
	for _, m := range ids {
		m, nonvoter := strings.CutPrefix(m, "-")
		k.Servers = append(k.Servers, Member{ID: m, Address: m + ":4381", Voter: !nonvoter})
	}
	return k
}

func TestDecide(t *testing.T) {
	abc := listOf("a", "b", "c")
	of := func(cluster string, k Knowledge) Knowledge {
		k.Cluster = cluster
		return k
	}
	refused := members("a", "a", "a", "c")
	refused.Waiting = []Candidate{{ID: "b", Reason: "for the reason given"}}
	for _, test := range []struct {
		name    string
		own     founding
		expect  int // 0: 3
		old     bool
		cluster string
		known   []Knowledge
		want    step
		trouble string
		is      error
	}{
		{name: "nobody else", trouble: "waiting for 3 servers to found the cluster, 1 seen: b at b:4381", is: eboot.ErrNoLeader, want: step{offer: listOf("b")}},
		{name: "one other", known: []Knowledge{offering("a", listOf("a"))}, trouble: "2 seen: a at a:4381, b at b:4381", is: eboot.ErrNoLeader, want: step{offer: listOf("b")}},
		{name: "all there", known: []Knowledge{offering("a", listOf("a")), offering("c", listOf("c"))}, want: step{offer: abc}},
		{name: "all agree", known: []Knowledge{offering("a", abc), offering("c", abc)}, want: step{offer: abc, promise: true}},
		{name: "one promised", known: []Knowledge{offering("a", abc.promised()), offering("c", abc)}, want: step{offer: abc, promise: true}},
		{name: "two of four have promised another list", known: []Knowledge{offering("a", listOf("a", "c", "d").promised()), offering("c", listOf("c")), offering("d", listOf("d"))},
			want: step{offer: listOf("b")}, trouble: "which this server then joins", is: eboot.ErrNoLeader},
		{name: "the first of four by id", known: []Knowledge{offering("a", listOf("a")), offering("c", listOf("c")), offering("d", listOf("d"))}, want: step{offer: abc}},
		{name: "the last of four by id", known: []Knowledge{offering("a", listOf("a")), offering("aa", listOf("aa")), offering("ab", listOf("ab"))}, want: step{offer: listOf("b")}, trouble: "then joins", is: eboot.ErrNoLeader},
		{name: "a peer that has lost its log offers nothing", known: []Knowledge{offering("a", listOf("a")), {ID: "c"}}, want: step{offer: listOf("b")}, trouble: "2 seen", is: eboot.ErrNoLeader},
		{name: "a peer remembers a cluster", known: []Knowledge{offering("a", listOf("a")), offering("d", listOf("d")), {ID: "c", Cluster: "uuid"}}, want: step{offer: listOf("b")}, trouble: "c at c:4381 knows cluster uuid", is: eboot.ErrNoLeader},
		{name: "expect 0", expect: -1, known: []Knowledge{offering("a", listOf("a"))}, trouble: "cluster.expect is 0", is: eboot.ErrNoLeader},
		{name: "expect 0, a peer remembers a cluster", expect: -1, known: []Knowledge{offering("a", listOf("a")), {ID: "c", Cluster: "uuid"}}, trouble: "(cluster.expect is 0); no cluster is founded beside another", is: eboot.ErrNoLeader},
		{name: "log gone, another cluster", old: true, cluster: "own", known: []Knowledge{of("other", members("a", "a", "a"))}, trouble: "a knows another cluster of this name, other", is: eboot.ErrConflict},
		{name: "log gone, another cluster took it in", old: true, cluster: "own", known: []Knowledge{of("other", members("a", "a", "a", "-b"))}, trouble: "does not join", is: eboot.ErrConflict},
		{name: "log gone, another cluster has its vote", old: true, cluster: "own", known: []Knowledge{of("other", members("a", "a", "a", "b"))}, trouble: "does not join", is: eboot.ErrConflict},
		{name: "log gone, its own cluster and another", old: true, cluster: "own", known: []Knowledge{of("other", members("a", "a", "a", "b")), of("own", members("c", "c", "-b", "c"))}, want: step{admit: true}},
		{name: "log gone, its own cluster waits", old: true, cluster: "own", known: []Knowledge{of("own", members("c", "c", "c"))}, trouble: "waits to be added to the cluster of c", is: eboot.ErrNoLeader},
		{name: "old", old: true, known: []Knowledge{offering("a", abc), offering("c", abc)}, trouble: "belonged to a cluster", is: eboot.ErrNoLeader},
		{name: "init elsewhere", known: []Knowledge{offering("a", founding{Servers: listOf("a").Servers, Alone: true}), offering("c", listOf("c"))}, want: step{offer: listOf("b")}, trouble: "init` runs on a", is: eboot.ErrNoLeader},
		{name: "promised, others too", own: abc.promised(), known: []Knowledge{offering("a", abc.promised()), offering("c", abc.promised())}, want: step{bootstrap: true}},
		{name: "promised, one not yet", own: abc.promised(), known: []Knowledge{offering("a", abc.promised()), offering("c", abc)}, trouble: "waits for c at c:4381", is: eboot.ErrNoLeader},
		{name: "promised, one gone", own: abc.promised(), known: []Knowledge{offering("a", abc.promised())}, trouble: "eboot cluster reset", is: eboot.ErrNoLeader},
		{name: "promised, one otherwise", own: abc.promised(), known: []Knowledge{offering("a", abc.promised()), offering("c", listOf("c", "d", "e").promised())}, trouble: "and c one of", is: eboot.ErrConflict},
		{name: "promised, init elsewhere", own: abc.promised(), known: []Knowledge{offering("a", abc.promised()), offering("c", abc.promised()), offering("d", founding{Servers: listOf("d").Servers, Alone: true})}, trouble: "init` runs on d", is: eboot.ErrNoLeader},
		{name: "promised, others were faster", own: abc.promised(), known: []Knowledge{members("a", "a", "a", "b", "c")}, want: step{bootstrap: true}},
		{name: "promised, a cluster without it", own: abc.promised(), known: []Knowledge{members("a", "a", "a")}, trouble: "without it", is: eboot.ErrConflict},
		{name: "wiped", known: []Knowledge{members("", "a", "a", "-b", "c"), members("", "c", "a", "b", "c")}, trouble: "lost or wiped", is: eboot.ErrConflict},
		{name: "wiped, the leader is behind", known: []Knowledge{members("a", "a", "a", "-b", "c"), members("", "c", "a", "b", "c")}, trouble: "remove --replace b", is: eboot.ErrConflict},
		{name: "added", known: []Knowledge{members("a", "a", "a", "-b", "c"), members("a", "c", "a", "c")}, want: step{admit: true}},
		{name: "added, but the leader does not answer", known: []Knowledge{members("a", "c", "a", "-b", "c")}, trouble: "waits to be added", is: eboot.ErrNoLeader},
		{name: "added, beside servers of another cluster", known: []Knowledge{members("a", "a", "a", "-b", "c"), members("x", "x", "x")}, want: step{admit: true}},
		{name: "two clusters", known: []Knowledge{members("a", "a", "a"), members("x", "x", "x")}, trouble: "two clusters", is: eboot.ErrConflict},
		{name: "refused", known: []Knowledge{refused}, trouble: "for the reason given", is: eboot.ErrConflict},
		{name: "not yet added", known: []Knowledge{members("a", "a", "a"), offering("c", abc)}, trouble: "waits to be added to the cluster of a at a:4381 by its leader, a", is: eboot.ErrNoLeader},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := position{self: Peer{ID: "b", Address: "b:4381", Expect: 3 + test.expect*3}, cluster: test.cluster, mayFound: !test.old, own: test.own}
			peers, a := around(test.known...)
			got := decide(p, peers, a)
			if err := got.trouble; test.is != nil && (err == nil || !errors.Is(err, test.is)) || !strings.Contains(fmt.Sprint(err), test.trouble) {
				t.Errorf("trouble %v, want %q", err, test.trouble)
			}
			if got.bootstrap != test.want.bootstrap || got.admit != test.want.admit || got.promise != test.want.promise || got.offer.encode() != test.want.offer.encode() {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}

func TestDecideAsksEverybody(t *testing.T) {
	p := position{self: Peer{ID: "b", Address: "b:4381", Expect: 3}, mayFound: true}
	abc := listOf("a", "b", "c")
	peers, a := around(offering("a", abc), offering("c", abc))

	silent := append(slices.Clone(peers), Peer{ID: "d", Address: "d:4381"}) // expects nothing, may know something
	a.silent["d"] = errors.New("connection refused")
	if s := decide(p, silent, a); s.promise || !strings.Contains(s.trouble.Error(), "d at d:4381 (connection refused)") {
		t.Errorf("%+v", s)
	}
	waits, lost := p, p
	waits.self.Expect, lost.mayFound = 0, false
	for _, q := range []position{waits, lost} {
		if s := decide(q, silent, a); !strings.Contains(s.trouble.Error(), "no answer from d at d:4381 (connection refused)") || strings.Contains(s.trouble.Error(), "none of the servers seen") || strings.Contains(s.trouble.Error(), "cluster init") {
			t.Errorf("silence is taken for an answer: %v", s.trouble)
		}
	}
	two := slices.Clone(peers)
	two[0].Expect = 5
	if s := decide(p, two, a); s.promise || !errors.Is(s.trouble, eboot.ErrConflict) || !strings.Contains(s.trouble.Error(), "3 here and a says 5") {
		t.Errorf("%+v", s)
	}
	same := founding{Servers: slices.Clone(abc.Servers)}
	same.Servers[2].Address = "a:4381"
	a.known["a"], a.known["c"] = offering("a", same), offering("c", same)
	if s := decide(p, peers, a); s.promise || !errors.Is(s.trouble, eboot.ErrConflict) || !strings.Contains(s.trouble.Error(), "both say") {
		t.Errorf("%+v", s)
	}
}

// model is a group of servers without Raft: what each has on disk and says. Every
// answer may be old when it is used, gossip may show anybody to anybody, and anyone may
// crash at any time.
type model struct {
	random  *rand.Rand
	servers []*modelServer
}

type modelServer struct {
	self    Peer
	promise founding
	founded founding
	said    founding
	asked   []Peer
	heard   answers
}

func (s *modelServer) knowledge() Knowledge {
	return Knowledge{ID: s.self.ID, Servers: s.founded.members(), Founding: s.said.encode()}
}

// hear has one server ask those whom it sees; what it does with that comes later.
func (m *model) hear(s *modelServer, see func(*modelServer) bool) {
	s.asked, s.heard = nil, answers{known: map[string]Knowledge{}, silent: map[string]error{}}
	for _, other := range m.servers {
		if other == s || !see(other) {
			continue
		}
		s.asked = append(s.asked, other.self)
		s.heard.known[other.self.ID] = other.knowledge()
	}
}

func (m *model) act(s *modelServer) {
	if len(s.founded.Servers) > 0 {
		return
	}
	d := decide(position{self: s.self, mayFound: true, own: s.said}, s.asked, s.heard)
	switch {
	case d.promise:
		s.promise = d.offer.promised()
		s.said = s.promise
	case d.bootstrap:
		s.founded = s.promise
	case !s.said.Promised:
		s.said = d.offer
	}
}

func (m *model) crash(s *modelServer) {
	s.said, s.asked, s.heard = s.promise, nil, answers{}
	s.self.Address = fmt.Sprintf("%s:%d", s.self.ID, m.random.IntN(60000)) // and comes back elsewhere
}

// check: every list that was founded is alone in having its servers.
func (m *model) check(t *testing.T) {
	t.Helper()
	for _, a := range m.servers {
		for _, b := range m.servers {
			x, y := a.founded, b.founded
			if x.encode() != y.encode() && (y.includes(a.self.ID) && len(x.Servers) > 0 || overlap(x.members(), y.members(), "")) {
				t.Fatalf("two clusters: %s has founded %v, %s has founded %v", a.self.ID, x, b.self.ID, y)
			}
		}
	}
}

func TestFoundingModel(t *testing.T) {
	rounds := 600
	if testing.Short() {
		rounds = 100
	}
	together := 0
	for seed := range rounds {
		m := &model{random: rand.New(rand.NewPCG(uint64(seed), 1))}
		for i := range 3 + m.random.IntN(3) {
			id := string(rune('a' + i))
			m.servers = append(m.servers, &modelServer{self: Peer{ID: id, Address: id + ":1", Expect: 3}})
		}
		for range 40 {
			s := m.servers[m.random.IntN(len(m.servers))]
			switch n := m.random.IntN(20); {
			case n == 0:
				m.crash(s)
			case n < 10:
				m.hear(s, func(*modelServer) bool { return m.random.IntN(6) > 0 })
			default:
				m.act(s)
			}
			m.check(t)
		}
		promised := slices.ContainsFunc(m.servers, func(s *modelServer) bool { return s.said.Promised })
		for range 10 { // now everybody sees everybody
			for _, s := range m.servers {
				m.hear(s, func(*modelServer) bool { return true })
				m.act(s)
				m.check(t)
			}
		}
		founded := 0
		for _, s := range m.servers {
			if len(s.founded.Servers) > 0 {
				founded++
			}
		}
		if founded == 3 {
			together++
		}
		if founded != 3 && !promised {
			t.Fatalf("seed %d: %d servers founded a cluster, and nothing stood in the way", seed, founded)
		}
	}
	t.Logf("%d of %d groups formed by themselves", together, rounds)
	if together < rounds*9/10 {
		t.Errorf("only %d of %d groups formed by themselves", together, rounds)
	}
}

func FuzzDecodeFounding(f *testing.F) {
	f.Add(listOf("a", "b").promised().encode())
	f.Add("")
	f.Add(`{"servers":null,"promised":true}`)
	f.Fuzz(func(t *testing.T, text string) {
		got := decodeFounding(text)
		if again := decodeFounding(got.encode()); len(got.Servers) > 0 && !slices.Equal(again.Servers, got.Servers) {
			t.Fatalf("%q became %+v and then %+v", text, got, again)
		}
	})
}
