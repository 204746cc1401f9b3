package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"eboot"
	"eboot/api"
	"eboot/ingest"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// TestAcceptanceHistories has clients change and read the replicated state through every
// server while servers are killed, paused and cut off, and checks what they heard: it is
// linearizable, no acknowledged write is lost, generations rise, and servers with the same
// index have the same state.
func TestAcceptanceHistories(t *testing.T) {
	t.Parallel()
	for i := range trials(6) {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) { testHistory(t, uint64(i)) })
	}
}

// faultsFor is how long faults go on in a full history.
const faultsFor = 45 * time.Second

func testHistory(t *testing.T, seed uint64) {
	c := startCluster(t, 3, clusterOptions{Network: testnet.New(t, 3), Settings: []string{"EBOOT_PUBLISH_WAIT=1s"}})
	w := newHistoryWorld(t, c, seed)
	w.Start(t, 6)
	defer w.Stop()

	b := &breaker{cluster: c, random: rand.New(rand.NewPCG(seed, 7)), counts: map[string]int{}}
	if trials(2) == 1 {
		for _, kind := range []faultKind{faultKill, faultPause, faultIsolate, faultMute, faultDeafen} {
			b.Break(t, kind, c.Leader(t), 1500*time.Millisecond)
		}
		b.Break(t, faultKill, c.Followers(t)[0], time.Second)
	} else {
		for end := time.Now().Add(faultsFor); time.Now().Before(end); {
			b.BreakSomething(t)
		}
	}
	c.WaitFormed(t)
	w.Wait(t, time.Second) // and all is well for a while
	w.Stop()
	if t.Failed() {
		return
	}

	final := w.ReadFinal(t)
	w.checkBundles(t, final)
	w.checkSameState(t)
	h := w.history
	acknowledged, losses := h.losses(final)
	changes, disorder := h.disorder()
	for _, fault := range append(losses, disorder...) {
		t.Error(fault)
	}
	h.Check(t)
	t.Logf("seed %d, faults %v: operations %v; %d acknowledged writes, none lost; %d generations in order; %d states compared at %d indexes",
		seed, b.counts, h.count, acknowledged, changes, w.states.compared, len(w.states.seen))
	if w.states.compared == 0 {
		t.Error("no states of two servers were compared")
	}
	for _, kind := range []string{"allow", "deny", "set channel", "publish", "check", "list", "show channel", "list bundles"} {
		if h.count[kind] == 0 {
			t.Errorf("no %s was answered: nothing was tested", kind)
		}
	}
}

// historyWorld is what the clients of one history share.
type historyWorld struct {
	cluster  *serverCluster
	history  *history
	states   stateTable
	seed     uint64
	prefixes []netip.Prefix
	channels []string
	versions []string
	trees    []string // paths
	digests  []string // of their manifests

	stopping atomic.Bool
	running  sync.WaitGroup
}

const historyBundle = "app"

func newHistoryWorld(t *testing.T, c *serverCluster, seed uint64) *historyWorld {
	t.Helper()
	w := &historyWorld{cluster: c, history: newHistory(), seed: seed, states: stateTable{seen: map[uint64]seenState{}}}
	for i := range 8 {
		w.prefixes = append(w.prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + i)}), 32))
	}
	for i := range 4 {
		w.channels = append(w.channels, fmt.Sprintf("channel%d", i+1))
	}
	for i := range 24 {
		w.versions = append(w.versions, fmt.Sprint(i+1))
	}
	for i := range 3 {
		tree := release(t, fmt.Sprint("content ", i))
		source, err := ingest.Open(t.Context(), tree, ingest.Options{ERTS: []string{otherERTS}})
		if err != nil {
			t.Fatal(err)
		}
		w.trees = append(w.trees, tree)
		w.digests = append(w.digests, eboot.DigestOf(source.Manifest().Encode()).String())
		if err := source.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Start starts clients, each of which turns to another server first, and every other of
// which knows no other: it hears of more that is not known. And for each server somebody who looks
// at its state.
func (w *historyWorld) Start(t *testing.T, clients int) {
	t.Helper()
	n := len(w.cluster.servers)
	for i := range clients {
		var addresses []string
		for j := range n - i%2*(n-1) {
			addresses = append(addresses, "unix://"+w.cluster.servers[(i+j)%n].socket())
		}
		client := w.newClient(t, i, addresses...)
		w.running.Go(func() {
			for !w.stopping.Load() && !t.Failed() {
				client.act(t)
				w.pause(time.Duration(client.random.IntN(20)) * time.Millisecond)
			}
		})
	}
	for _, s := range w.cluster.servers {
		client := w.newClient(t, -1, "unix://"+s.socket())
		w.running.Go(func() {
			for !w.stopping.Load() && !t.Failed() {
				w.look(t, s.Name, client.api)
				w.pause(50 * time.Millisecond)
			}
		})
	}
}

// pause waits, though not when the clients are to stop.
func (w *historyWorld) pause(d time.Duration) {
	if !w.stopping.Load() {
		<-time.After(d)
	}
}

// Stop waits for what the clients are doing.
func (w *historyWorld) Stop() {
	w.stopping.Store(true)
	w.running.Wait()
}

// Wait lets the clients go on for a while.
func (w *historyWorld) Wait(t *testing.T, d time.Duration) {
	t.Helper()
	end := time.Now().Add(d)
	testutil.Poll(t, d+time.Minute, "clients are to go on", func() bool { return time.Now().After(end) })
}

// look takes note of the state of a server, whatever it is: its index, and the digest
// and the generation of that.
func (w *historyWorld) look(t *testing.T, server string, client *api.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), operationLimit)
	defer cancel()
	if info, err := client.SaveSnapshot(ctx, io.Discard); err == nil {
		w.states.add(t, server, info)
	}
}

// checkSameState waits until all servers have the same state.
func (w *historyWorld) checkSameState(t *testing.T) {
	t.Helper()
	var infos []api.SnapshotInfo
	defer func() {
		if t.Failed() {
			t.Logf("states: %+v", infos)
		}
	}()
	testutil.Poll(t, 20*time.Second, "servers are to have the same state", func() bool {
		infos = nil
		for _, s := range w.cluster.servers {
			status, err := s.Client.Status(t.Context()) // a snapshot would leave an event, and so another state
			if err != nil {
				return false
			}
			infos = append(infos, api.SnapshotInfo{Index: status.AppliedIndex, Generation: status.Generation, Digest: status.StateDigest})
		}
		return len(slices.Compact(slices.Clone(infos))) == 1
	})
	for i, s := range w.cluster.servers {
		w.states.add(t, s.Name, infos[i])
	}
}

// checkBundles waits until every server holds all of every bundle that is visible.
func (w *historyWorld) checkBundles(t *testing.T, final map[string]string) {
	t.Helper()
	for _, version := range w.versions {
		ref := eboot.Ref{Name: historyBundle, Version: version}
		if final[bundleKey(ref)] == "" {
			continue
		}
		testutil.Poll(t, 30*time.Second, "every server is to hold "+ref.String(), func() bool {
			details, err := w.cluster.client.Bundle(t.Context(), ref)
			if err != nil || len(details) != 1 || len(details[0].Copies) != len(w.cluster.servers) {
				return false
			}
			return !slices.ContainsFunc(details[0].Copies, func(c api.BundleCopy) bool { return c.Missing > 0 || c.Problem != "" })
		})
		for _, s := range w.cluster.servers {
			if result, err := s.Client.VerifyBundle(t.Context(), ref, nil); err != nil || !result.OK() {
				t.Errorf("%s on %s is not whole: %+v, %v", ref, s.Name, result, err)
			}
		}
	}
}

// ReadFinal reads everything through every server, as a part of the history, and
// returns the values by key.
func (w *historyWorld) ReadFinal(t *testing.T) map[string]string {
	t.Helper()
	var final map[string]string
	for i, s := range w.cluster.servers {
		client := w.newClient(t, 100+i, "unix://"+s.socket())
		testutil.Poll(t, 30*time.Second, "server "+s.Name+" is to answer reads that are not stale", func() bool {
			values := map[string]string{}
			client.read = func(key, value string) { values[key] = value }
			if !client.listWhitelist(t) || !client.listBundles(t) {
				return false
			}
			for _, channel := range w.channels {
				if !client.showChannel(t, channel) {
					return false
				}
			}
			if final != nil && !maps.Equal(final, values) {
				t.Errorf("%s shows %v at the end, another server %v", s.Name, values, final)
			}
			final = values
			return true
		})
	}
	return final
}

// stateTable compares the states of servers at the same index.
type stateTable struct {
	mu       sync.Mutex
	seen     map[uint64]seenState // by index
	compared int                  // of two servers
}

type seenState struct {
	server     string
	digest     eboot.Digest
	generation uint64
}

func (s *stateTable) add(t *testing.T, server string, info api.SnapshotInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := seenState{server, info.Digest, info.Generation}
	before, ok := s.seen[info.Index]
	if ok && before.server != server {
		s.compared++
	}
	if ok && (before.digest != now.digest || before.generation != now.generation) {
		t.Errorf("two states at index %d: %+v and %+v", info.Index, before, now)
	}
	s.seen[info.Index] = now
}

// historyClient is one client, used by one goroutine.
type historyClient struct {
	world  *historyWorld
	number int
	api    *api.Client
	random *rand.Rand
	stale  bool // an answer to the latest call was
	done   int
	read   func(key, value string) // hears of every value that is read; may be nil
}

func (w *historyWorld) newClient(t *testing.T, number int, addresses ...string) *historyClient {
	t.Helper()
	c := &historyClient{world: w, number: number, random: rand.New(rand.NewPCG(w.seed, uint64(number)))}
	var err error
	c.api, err = api.NewClient(api.ClientOptions{Addresses: addresses, Timeout: 8 * time.Second, OnStale: func(string) { c.stale = true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.api.Close)
	return c
}

// operationLimit is how long an operation may take.
const operationLimit = 10 * time.Second

// act does one thing.
func (c *historyClient) act(t *testing.T) {
	w := c.world
	prefix := w.prefixes[c.random.IntN(len(w.prefixes))]
	channel := w.channels[c.random.IntN(len(w.channels))]
	ref := eboot.Ref{Name: historyBundle, Version: w.versions[c.random.IntN(len(w.versions))]}
	switch c.random.IntN(12) {
	case 0, 1:
		c.allow(t, prefix)
	case 2, 3:
		c.deny(t, prefix)
	case 4, 5:
		c.setChannel(t, channel, ref)
	case 6:
		c.publish(t, ref, c.random.IntN(len(w.trees)), channel)
	case 7, 8:
		c.check(t, prefix)
	case 9:
		c.listWhitelist(t)
	case 10:
		c.showChannel(t, channel)
	case 11:
		c.listBundles(t)
	}
}

func entryKey(p netip.Prefix) string      { return "entry " + p.String() }
func channelKey(channel string) string    { return "channel " + channel }
func bundleKey(ref eboot.Ref) string      { return "bundle " + ref.String() }
func operationLabel(client, n int) string { return fmt.Sprintf("%d-%d", client, n) }

// labelled is the label of an entry that names the operation which made it: no two
// operations put the same value.
const labelled = "operation"

// call makes a call, notes it and returns its error. Errors are only those that faults
// explain, and those expected.
func (c *historyClient) call(t *testing.T, what string, f func(ctx context.Context) error, expected ...error) (began int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), operationLimit)
	defer cancel()
	c.stale = false
	began = c.world.history.now()
	err = f(ctx)
	switch {
	case errors.Is(err, eboot.ErrUnknownOutcome):
		what += ", unknown"
	case err == nil && c.stale:
		what += ", stale"
	case err == nil:
	case slices.ContainsFunc(expected, func(e error) bool { return errors.Is(err, e) }):
		what += ", refused"
	case errors.Is(err, eboot.ErrNoLeader), errors.Is(err, eboot.ErrUnreachable), errors.Is(err, eboot.ErrUnavailable), errors.Is(err, eboot.ErrTimeout):
		what += ", failed"
	default:
		t.Errorf("client %d: %s: %v", c.number, what, err)
	}
	c.world.history.note(what)
	return began, err
}

func (c *historyClient) record(call int64, s step, o heard) {
	c.world.history.record(c.number, call, s, o)
}

// recordWrite notes a write to one key, unless it surely did not happen.
func (c *historyClient) recordWrite(call int64, s step, r api.WriteResult, err error) {
	switch {
	case err == nil:
		c.record(call, s, heard{Told: true, Changed: r.Changed, Generation: r.Generation})
	case errors.Is(err, eboot.ErrUnknownOutcome):
		c.record(call, s, heard{Unknown: true})
	}
}

func (c *historyClient) allow(t *testing.T, prefix netip.Prefix) {
	c.done++
	value := operationLabel(c.number, c.done)
	var result api.WriteResult
	call, err := c.call(t, "allow", func(ctx context.Context) (err error) {
		result, err = c.api.Allow(ctx, eboot.WhitelistEntry{Prefix: prefix, Channel: eboot.DefaultChannel, Labels: map[string]string{labelled: value}})
		return err
	})
	c.recordWrite(call, step{Key: entryKey(prefix), Kind: stepPut, Value: value}, result, err)
}

func (c *historyClient) deny(t *testing.T, prefix netip.Prefix) {
	var result api.WriteResult
	call, err := c.call(t, "deny", func(ctx context.Context) (err error) {
		result, err = c.api.Deny(ctx, prefix)
		return err
	}, eboot.ErrNotFound)
	s := step{Key: entryKey(prefix), Kind: stepRemove}
	if errors.Is(err, eboot.ErrNotFound) && !errors.Is(err, eboot.ErrUnknownOutcome) {
		c.record(call, s, heard{Refused: true})
		return
	}
	c.recordWrite(call, s, result, err)
}

func (c *historyClient) setChannel(t *testing.T, channel string, ref eboot.Ref) {
	var result api.WriteResult
	call, err := c.call(t, "set channel", func(ctx context.Context) (err error) {
		result, err = c.api.SetChannel(ctx, channel, api.ChannelSet{Bundle: ref})
		return err
	}, eboot.ErrNotFound)
	switch {
	case err == nil:
		c.record(call, step{Key: bundleKey(ref), Kind: stepPresent}, heard{})
	case errors.Is(err, eboot.ErrNotFound) && !errors.Is(err, eboot.ErrUnknownOutcome):
		c.record(call, step{Key: bundleKey(ref), Kind: stepRead}, heard{})
	}
	c.recordWrite(call, step{Key: channelKey(channel), Kind: stepPut, Value: ref.String()}, result, err)
}

func (c *historyClient) publish(t *testing.T, ref eboot.Ref, tree int, channel string) {
	var result api.PublishOutcome
	call, err := c.call(t, "publish", func(ctx context.Context) error {
		source, err := ingest.Open(ctx, c.world.trees[tree], ingest.Options{ERTS: []string{otherERTS}})
		if err != nil {
			return err
		}
		found := source.Found()
		result, err = c.api.Publish(ctx, api.Publish{Ref: ref, ERTS: found.ERTS, BootScript: found.BootScript, Channel: channel, Source: source})
		return errors.Join(err, source.Close())
	}, eboot.ErrConflict, eboot.ErrNotFound) // not found: the server was restarted in the middle
	create := step{Key: bundleKey(ref), Kind: stepCreate, Value: c.world.digests[tree]}
	move := step{Key: channelKey(channel), Kind: stepPut, Value: ref.String()}
	switch {
	case err == nil:
		c.record(call, create, heard{})
		c.record(call, move, heard{Generation: result.Generation})
	case errors.Is(err, eboot.ErrUnknownOutcome):
		c.record(call, create, heard{Unknown: true})
		c.record(call, move, heard{Unknown: true})
	case errors.Is(err, eboot.ErrConflict):
		c.record(call, create, heard{Refused: true})
	}
}

// reads reports whether a read was answered by a server that knew everything.
func (c *historyClient) reads(err error) bool { return err == nil && !c.stale }

func (c *historyClient) recordRead(call int64, key string, o heard) {
	c.record(call, step{Key: key, Kind: stepRead}, o)
	if c.read != nil {
		c.read(key, o.Value)
	}
}

func (c *historyClient) check(t *testing.T, prefix netip.Prefix) {
	var result api.SlaveCheck
	call, err := c.call(t, "check", func(ctx context.Context) (err error) {
		result, err = c.api.Check(ctx, prefix.Addr())
		return err
	})
	if c.reads(err) {
		var o heard
		if result.Whitelisted {
			o.Value = result.Entry.Labels[labelled]
		}
		c.recordRead(call, entryKey(prefix), o)
	}
}

func (c *historyClient) listWhitelist(t *testing.T) bool {
	var entries []eboot.WhitelistEntry
	call, err := c.call(t, "list", func(ctx context.Context) (err error) {
		entries, err = c.api.Whitelist(ctx)
		return err
	})
	if !c.reads(err) {
		return false
	}
	values := map[netip.Prefix]string{}
	for _, e := range entries {
		values[e.Prefix] = e.Labels[labelled]
	}
	for _, p := range c.world.prefixes {
		c.recordRead(call, entryKey(p), heard{Value: values[p]})
	}
	return true
}

func (c *historyClient) showChannel(t *testing.T, name string) bool {
	var channel eboot.Channel
	call, err := c.call(t, "show channel", func(ctx context.Context) (err error) {
		channel, err = c.api.Channel(ctx, name)
		if errors.Is(err, eboot.ErrNotFound) {
			err = nil
		}
		return err
	})
	if !c.reads(err) {
		return false
	}
	var o heard
	if n := len(channel.History); n > 0 {
		o = heard{Value: channel.Bundles[otherERTS].String(), Generation: channel.History[n-1].Generation}
	}
	c.recordRead(call, channelKey(name), o)
	return true
}

func (c *historyClient) listBundles(t *testing.T) bool {
	var bundles []api.BundleDetail
	call, err := c.call(t, "list bundles", func(ctx context.Context) (err error) {
		bundles, err = c.api.Bundles(ctx)
		return err
	})
	if !c.reads(err) {
		return false
	}
	values := map[eboot.Ref]string{}
	for _, b := range bundles {
		values[b.Ref()] = b.Manifest.String()
	}
	for _, version := range c.world.versions {
		ref := eboot.Ref{Name: historyBundle, Version: version}
		c.recordRead(call, bundleKey(ref), heard{Value: values[ref]})
	}
	return true
}

// faultKind is what can happen to a server.
type faultKind string

const (
	faultKill    faultKind = "kill"
	faultKillAll faultKind = "kill all"
	faultPause   faultKind = "pause"
	faultIsolate faultKind = "isolate" // no packets to or from the others
	faultMute    faultKind = "mute"    // nothing that it sends arrives
	faultDeafen  faultKind = "deafen"  // nothing arrives that is sent to it
	faultCut     faultKind = "cut"     // from one of the others
)

// breaker breaks servers and mends them.
type breaker struct {
	cluster *serverCluster
	random  *rand.Rand
	counts  map[string]int
}

// BreakSomething breaks something for some seconds at most, and waits a moment then: not
// long enough for all to be well again, always.
func (b *breaker) BreakSomething(t *testing.T) {
	t.Helper()
	kinds := []faultKind{faultKill, faultPause, faultIsolate, faultMute, faultDeafen, faultCut, faultKill, faultPause, faultIsolate, faultKillAll}
	victim := b.cluster.servers[b.random.IntN(len(b.cluster.servers))]
	hold := 200*time.Millisecond + time.Duration(b.random.IntN(4000))*time.Millisecond
	b.Break(t, kinds[b.random.IntN(len(kinds))], victim, hold)
	<-time.After(time.Duration(b.random.IntN(3000)) * time.Millisecond)
}

// Break breaks a server for a time.
func (b *breaker) Break(t *testing.T, kind faultKind, victim *clusterServer, hold time.Duration) {
	t.Helper()
	b.counts[string(kind)]++
	network, others := b.cluster.network, b.cluster.Others(victim)
	switch kind {
	case faultKill, faultKillAll:
		killed := []*clusterServer{victim}
		if kind == faultKillAll {
			killed = b.cluster.servers
		}
		for _, s := range killed {
			s.Kill()
		}
		defer func() {
			for _, s := range killed {
				s.Start(t)
			}
		}()
	case faultPause:
		victim.Pause()
		defer victim.Resume()
	case faultIsolate:
		network.Isolate(victim.host)
	case faultMute:
		for _, o := range others {
			network.CutOneWay(victim.host, o.host)
		}
	case faultDeafen:
		for _, o := range others {
			network.CutOneWay(o.host, victim.host)
		}
	case faultCut:
		network.Cut(victim.host, others[b.random.IntN(len(others))].host)
	}
	<-time.After(hold)
	network.Heal()
}
