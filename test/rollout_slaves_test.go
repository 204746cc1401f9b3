package test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"eboot"
	"eboot/internal/testnet"
	"eboot/internal/testutil"
)

// minHealthy of the rollouts of these tests: a slave that boots again after it has not failed.
const minHealthy = 500 * time.Millisecond

// noStage is before the first one.
const noStage = -1

// stageLimits say what slaves may boot, and what they must, while servers come to know of a
// step one after another.
type stageLimits struct {
	mu        sync.Mutex
	may, must int // slaves of the stages up to this one
}

func (l *stageLimits) set(may, must int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.may, l.must = may, must
}

func (l *stageLimits) get() (may, must int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.may, l.must
}

// worldCounts is what came of the boots of a world.
type worldCounts struct {
	mu       sync.Mutex
	Boots    map[string]int // by version
	Nodes    int            // of them, those of real nodes
	Loads    int            // modules that were loaded later
	Switches int
	Refusals int
	ByStage  map[int]int // boots of B, by the stage of the slave
	Latest   map[string]string
}

// rolloutWorld is a cluster whose slaves boot again and again.
type rolloutWorld struct {
	erl       testutil.Erlang
	cluster   *serverCluster
	network   *testnet.Network
	simulated *testnet.Host // with the addresses of all simulated slaves
	loader    string
	a, b      *markedTree
	stages    []eboot.Stage
	labels    map[string]map[string]string // by address; of those that have any

	limits stageLimits
	counts worldCounts
	ended  chan struct{} // slaves are to end
	slaves sync.WaitGroup
	places []string
}

// newRolloutWorld starts three servers with bundles A and B, of which channel stable has A. Slaves
// are in a network of their own; the labels of some say that they are canaries.
func newRolloutWorld(t *testing.T, loader string, simulated, nodes int, b func(testing.TB, testutil.Erlang) *markedTree) *rolloutWorld {
	t.Helper()
	erl := testutil.RequireErl(t)
	network := testnet.New(t, 4+nodes)
	w := &rolloutWorld{
		erl: erl, network: network, simulated: network.Host(3), loader: loader,
		labels: map[string]map[string]string{}, ended: make(chan struct{}),
		limits: stageLimits{may: noStage, must: noStage},
		counts: worldCounts{Boots: map[string]int{}, ByStage: map[int]int{}, Latest: map[string]string{}},
	}
	for i, text := range []string{"canary:label=canary", "30%", "100%"} {
		stage, err := eboot.ParseStage(text)
		if err != nil {
			t.Fatalf("stage %d: %v", i, err)
		}
		w.stages = append(w.stages, stage)
	}
	w.cluster = startCluster(t, 3, clusterOptions{Network: network})
	w.a, w.b = makeMarked(t, erl, "A", false), b(t, erl)
	w.cluster.PublishMarked(t, erl, w.a, true)
	w.cluster.PublishMarked(t, erl, w.b, false)
	setLoader(t, w.cluster.client, loader)
	w.cluster.Allow(t, "10.83.7.0/24")
	if simulated > 0 {
		w.places = w.spareAddresses(t, simulated)
	}
	w.cluster.WaitApplied(t)
	w.cluster.WaitReady(t, erl, w.simulated.Address.String())
	return w
}

// Canaries gives the label to these slaves.
func (w *rolloutWorld) Canaries(t testing.TB, addresses ...string) {
	t.Helper()
	labels := map[string]string{"rack": "canary"}
	var hosts []string
	for _, a := range addresses {
		w.labels[a] = labels
		hosts = append(hosts, a+"/32")
	}
	w.cluster.allowLabelled(t, labels, hosts...)
	w.cluster.WaitApplied(t)
}

// stageOf is the stage that brings a slave the target.
func (w *rolloutWorld) stageOf(address string) int {
	r := eboot.Rollout{Channel: eboot.DefaultChannel, Target: w.b.Ref, RolloutSpec: eboot.RolloutSpec{Stages: w.stages}}
	stage, ok := r.StageOf(netip.MustParseAddr(address), w.labels[address])
	if !ok {
		return len(w.stages)
	}
	return stage
}

// seenBoot is one boot of one slave and the limits as it went.
type seenBoot struct {
	world     *rolloutWorld
	address   string
	stage     int
	may, must int // the most and the least of the two moments that count
	version   string
}

func (w *rolloutWorld) newBoot(address string) *seenBoot {
	may, must := w.limits.get()
	return &seenBoot{world: w, address: address, stage: w.stageOf(address), may: may, must: must}
}

// Is notes of which version something is; all must be of one, and of one that the slave may
// have when its boot script was sent.
func (s *seenBoot) Is(what, version string) error {
	if s.version == "" {
		s.version = version
		may, must := s.world.limits.get()
		s.may, s.must = max(s.may, may), min(s.must, must)
		switch b := version == s.world.b.Ref.Version; {
		case b && s.stage > s.may:
			return fmt.Errorf("slave %s of stage %d boots %s in stage %d", s.address, s.stage, version, s.may)
		case !b && s.stage <= s.must:
			return fmt.Errorf("slave %s of stage %d boots %s in stage %d", s.address, s.stage, version, s.must)
		}
	}
	if s.version != version {
		return fmt.Errorf("slave %s: %s is of version %s in a boot of version %s", s.address, what, version, s.version)
	}
	return nil
}

// File notes what came.
func (s *seenBoot) File(path string, content []byte) error {
	if _, ours := s.world.a.Files[path]; !ours {
		return nil // of OTP: the same in both
	}
	for _, tree := range []*markedTree{s.world.a, s.world.b} {
		if bytes.Equal(content, tree.Files[path]) {
			return s.Is(path, tree.Ref.Version)
		}
	}
	return fmt.Errorf("slave %s: %s is of no version", s.address, path)
}

// count enters the boot once it has ended well.
func (w *rolloutWorld) count(s *seenBoot, node bool) {
	w.counts.mu.Lock()
	defer w.counts.mu.Unlock()
	w.counts.Boots[s.version]++
	w.counts.Latest[s.address] = s.version
	if node {
		w.counts.Nodes++
	}
	if s.version == w.b.Ref.Version {
		w.counts.ByStage[s.stage]++
	}
}

// Simulate has n of the simulated slaves boot again and again, from now to Stop.
func (w *rolloutWorld) Simulate(t *testing.T) {
	t.Helper()
	for i, address := range w.places {
		w.slaves.Go(func() {
			_ = w.simulated.Namespace.Do(func() error { // sockets belong to the thread that makes them
				for !w.over() && !t.Failed() {
					if err := w.simulateOne(address, i%20 == 0); err != nil {
						t.Errorf("simulated slave %s: %v", address, err)
					}
				}
				return nil
			})
		})
	}
	t.Cleanup(w.Stop)
}

func (w *rolloutWorld) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// Stop ends all slaves and waits for them.
func (w *rolloutWorld) Stop() {
	if !w.over() {
		close(w.ended)
	}
	w.slaves.Wait()
}

// simulateOne is one boot and the time after it.
func (w *rolloutWorld) simulateOne(address string, plan bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), bootDeadline)
	defer cancel()
	s := testutil.NewCheckedSession(testutil.SessionOptions{Servers: w.cluster.Addresses(), ERTS: w.erl.ERTS, Local: address, Root: slaveRoot})
	defer s.Close()
	boot := testutil.CheckedBoot{Script: slaveRoot + "/bin/start.boot", Stock: w.loader == eboot.LoaderStock, Plan: plan, Listed: "lib"}
	for i := range markedModules {
		boot.Files = append(boot.Files, fmt.Sprintf("lib/marked-1/ebin/marked_%02d.beam", i))
	}
	seen := w.newBoot(address)
	err := s.Boot(ctx, boot, func(path string, content []byte) error {
		if path != boot.Script {
			return seen.File(path, content)
		}
		if !boot.Stock {
			name, version, _ := strings.Cut(s.Bundle(), "@")
			return seen.Is("boot script of "+name, version)
		}
		for _, tree := range []*markedTree{w.a, w.b} {
			if bytes.Equal(content, tree.Script) {
				return seen.Is("boot script", tree.Ref.Version)
			}
		}
		return fmt.Errorf("boot script of %d bytes is of no version", len(content))
	})
	if err != nil {
		return err
	}
	stay := minHealthy + 700*time.Millisecond + rand.N(1500*time.Millisecond)
	if boot.Stock {
		stay += time.Second // before it counts as booted
	}
	w.count(seen, false)
	defer func() {
		w.counts.mu.Lock()
		defer w.counts.mu.Unlock()
		w.counts.Switches += s.Switches
		w.counts.Refusals += s.Refusals
	}()
	if err := w.rest(s, stay); err != nil {
		return err
	}
	path := fmt.Sprintf("lib/marked-1/ebin/late_%02d.beam", rand.N(lateModules))
	ctx, cancel = context.WithTimeout(context.Background(), bootDeadline)
	defer cancel()
	content, err := s.Load(ctx, path)
	if err != nil {
		return fmt.Errorf("up, and then: %w", err)
	}
	w.counts.mu.Lock()
	w.counts.Loads++
	w.counts.mu.Unlock()
	if boot.Stock {
		// The server may be another one, which was told of the boot while it went on. A slave
		// that closes now would be in the middle of it.
		if err := s.Stay(ctx, 1500*time.Millisecond); err != nil {
			return err
		}
	}
	return seen.File(path, content)
}

// rest stays connected for a time, or until slaves are to end.
func (w *rolloutWorld) rest(s *testutil.CheckedSession, stay time.Duration) error {
	for end := time.Now().Add(stay); time.Now().Before(end) && !w.over(); {
		if err := s.Stay(context.Background(), 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// node is a real node of a marked release, in a namespace of its own.
type node struct {
	*testutil.Slave
	trigger string // the file that has it load a module
}

var runningLine = regexp.MustCompile(`(?m)^running (\S+) pid (\d+)$`)

// startNode boots a node that says what it runs, each time it has booted, and that loads a
// module when it is told to.
func (w *rolloutWorld) startNode(t testing.TB, host *testnet.Host) *node {
	t.Helper()
	return startMarkedNode(t, w.erl, w.cluster, host)
}

func startMarkedNode(t testing.TB, erl testutil.Erlang, c *serverCluster, host *testnet.Host) *node {
	t.Helper()
	n := &node{trigger: filepath.Join(t.TempDir(), "go")}
	opts := testutil.SlaveOptions{Hosts: c.Addresses(), Root: slaveRoot, Eval: fmt.Sprintf(`
		io:format("running ~s pid ~s~n", [marked:version(), os:getpid()]),
		spawn(fun Wait() ->
			case prim_file:read_file_info(%q) of
				{ok, _} -> io:format("late ~s~n", [late_00:version()]);
				_ -> receive after 20 -> Wait() end
			end end).`, n.trigger)}
	if host != nil {
		opts.Namespace = host.Namespace
	}
	n.Slave = testutil.StartSlave(t, erl, opts)
	return n
}

// Runs are the versions that it has said it runs, one for each time it has booted, and the
// ids of its process as it said them.
func (n *node) Runs() (versions, pids []string) {
	for _, found := range runningLine.FindAllStringSubmatch(n.Output(), -1) {
		versions, pids = append(versions, found[1]), append(pids, found[2])
	}
	return versions, pids
}

// WaitRuns waits until it runs for the nth time, and returns what.
func (n *node) WaitRuns(t testing.TB, nth int, deadline time.Duration) string {
	t.Helper()
	var versions []string
	defer func() {
		if t.Failed() {
			t.Logf("the node: %s", tail(n.Output()))
		}
	}()
	testutil.Poll(t, deadline, fmt.Sprintf("node is to run for time %d", nth), func() bool {
		versions, _ = n.Runs()
		if n.Exited() && len(versions) < nth {
			t.Fatalf("node ended:\n%s", n.Output())
		}
		return len(versions) >= nth
	})
	return versions[nth-1]
}

// Late has it load a module and returns of which version that is.
func (n *node) Late(t testing.TB) string {
	t.Helper()
	write(t, n.trigger, "")
	var version string
	testutil.Poll(t, bootDeadline, "node is to load a module", func() bool {
		for line := range strings.Lines(n.Output()) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "late "); ok {
				version = v
			}
		}
		return version != "" || n.Exited()
	})
	if version == "" {
		t.Fatalf("node ended:\n%s", n.Output())
	}
	return version
}

// RunNodes has a real node on each of the hosts, restarted now and then, until Stop.
func (w *rolloutWorld) RunNodes(t *testing.T, hosts []*testnet.Host) {
	t.Helper()
	for _, host := range hosts {
		w.slaves.Go(func() {
			for !w.over() && !t.Failed() {
				w.runNode(t, host)
			}
		})
	}
	t.Cleanup(w.Stop)
}

func (w *rolloutWorld) runNode(t *testing.T, host *testnet.Host) {
	address := host.Address.String()
	seen := w.newBoot(address)
	n := w.startNode(t, host)
	defer n.Kill()
	version := n.WaitRuns(t, 1, bootDeadline)
	if err := seen.Is("node", version); err != nil {
		t.Error(err)
	}
	w.count(seen, true)
	stay := minHealthy + 2*time.Second + rand.N(4*time.Second)
	for end := time.Now().Add(stay); time.Now().Before(end) && !w.over(); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-w.ended:
		}
	}
	if late := n.Late(t); late != version {
		t.Errorf("node %s runs version %s and has loaded a module of %s", address, version, late)
	}
	w.counts.mu.Lock()
	w.counts.Loads++
	w.counts.mu.Unlock()
}

// all are the addresses of all slaves; nodes those of the hosts after the simulated one.
func (w *rolloutWorld) all() []string {
	all := slices.Clone(w.places)
	for _, h := range w.nodes() {
		all = append(all, h.Address.String())
	}
	return all
}

func (w *rolloutWorld) nodes() []*testnet.Host { return w.network.Hosts()[4:] }

// WaitBooted waits until the latest boot of every slave that is to run the version is one of
// it; stages up to this one run B.
func (w *rolloutWorld) WaitBooted(t testing.TB, stage int) {
	t.Helper()
	var wrong []string
	defer func() {
		if t.Failed() {
			t.Logf("%d slaves do not run what they should: %v", len(wrong), wrong[:min(10, len(wrong))])
		}
	}()
	testutil.Poll(t, 2*bootDeadline, "slaves are to boot what they should", func() bool {
		wrong = nil
		w.counts.mu.Lock()
		defer w.counts.mu.Unlock()
		for _, address := range w.all() {
			want := w.a.Ref.Version
			if w.stageOf(address) <= stage {
				want = w.b.Ref.Version
			}
			if w.counts.Latest[address] != want {
				wrong = append(wrong, address)
			}
		}
		return len(wrong) == 0 || t.Failed()
	})
}
