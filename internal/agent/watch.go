package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/bootproto"
	"eboot/fleet"
)

// A stock slave boots from whatever answers it, and one that asks a broadcast address is answered by
// any machine of its network. So each server asks, too, and whoever answers and is no server of
// the cluster is a rogue: an alarm, and nothing else. eboot does not fight.

const (
	probeTime    = time.Second     // for the answers to one look; stock slaves wait for half of it
	secondLook   = 2 * time.Second // after which it is asked again who the cluster's servers are
	resolveTime  = time.Second     // for the names of servers
	firstLook    = 5 * time.Second // after the start: until then the others know this server, and its query
	lookTime     = probeTime + secondLook + resolveTime
	maxVersions  = 8 // that one look asks for
	missedLooks  = 3 // in a row without an answer: the rogue is gone
	probeProblem = "other boot servers on the networks of slaves cannot be seen (boot.watch): "
)

// watch looks for strangers that answer slaves.
type watch struct {
	period   time.Duration // within which one is noticed; 0: nobody looks
	binds    []netip.Addr  // where this server answers slaves
	seeds    []string      // places of servers that may be about to join
	peers    *peers
	fleet    *fleet.Fleet
	versions func() []string // ERTS versions that this server serves
	logger   hclog.Logger

	mu      sync.Mutex
	rogues  rogueTable
	looks   uint64 // so far
	problem string // why it could not be asked everywhere; empty: it could
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) error {
	if w.period == 0 {
		return nil
	}
	every := w.period - lookTime
	if !pause(ctx, min(firstLook, every)) {
		return nil
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		w.look(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look asks once, and judges what answers.
func (w *watch) look(ctx context.Context) {
	networks, err := localNetworks()
	targets, versions := probeTargets(w.binds, networks), w.turn()
	if err == nil && (len(targets) == 0 || len(versions) == 0) {
		w.tellProblem(nil)
		w.judge(time.Now(), nil, true) // nobody can be asked: what is known gets old
		return
	}
	var replies []bootproto.Reply
	if err == nil {
		replies, err = w.ask(ctx, targets, versions)
	}
	if ctx.Err() != nil {
		return
	}
	w.tellProblem(err)
	hosts, _ := w.known(networks)
	strangers := unknown(replies, hosts)
	if w.anyNew(strangers) {
		// A server that joins or has got another address is known a moment later.
		if !pause(ctx, secondLook) {
			return
		}
		strangers = unknown(strangers, w.resolved(ctx, networks))
	}
	if ctx.Err() == nil {
		w.judge(time.Now(), strangers, err == nil)
	}
}

// turn are the versions to ask for: all, or some in turn when there are many.
func (w *watch) turn() []string {
	versions := w.versions()
	slices.Sort(versions)
	versions = slices.Compact(versions)
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.looks
	w.looks++
	if len(versions) <= maxVersions {
		return versions
	}
	parts := slices.Collect(slices.Chunk(versions, maxVersions))
	return parts[n%uint64(len(parts))]
}

// ask sends the queries of one look. Meanwhile this server knows them for its own.
func (w *watch) ask(ctx context.Context, targets []bootproto.ProbeTarget, versions []string) ([]bootproto.Reply, error) {
	probe, err := bootproto.OpenProbe(targets)
	if err != nil {
		return nil, err
	}
	own := map[netip.AddrPort]bool{}
	for _, source := range probe.Sources() {
		own[source] = true
	}
	w.peers.probing.Store(&own)
	defer w.peers.probing.Store(&map[netip.AddrPort]bool{})
	replies, err := probe.Ask(ctx, versions, probeTime)
	return replies, errors.Join(err, probe.Close())
}

// unknown returns the replies that come from none of the hosts.
func unknown(replies []bootproto.Reply, hosts map[netip.Addr]bool) []bootproto.Reply {
	return slices.DeleteFunc(slices.Clone(replies), func(r bootproto.Reply) bool { return hosts[r.From.Addr()] })
}

// known are the addresses at which this server and the others answer slaves, as far as they can
// be had at once, and the names of others.
func (w *watch) known(networks []network) (hosts map[netip.Addr]bool, names []string) {
	hosts, names = w.peers.neighbours(w.seeds)
	for _, n := range networks {
		if n.within(w.binds) {
			hosts[n.prefix.Addr()] = true
		}
	}
	return hosts, names
}

// resolved are the addresses of all servers that are known now, by name, too.
func (w *watch) resolved(ctx context.Context, networks []network) map[netip.Addr]bool {
	hosts, names := w.known(networks)
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	slices.Sort(names)
	names = slices.Compact(names)
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, name := range names {
		group.Go(func() {
			addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", name)
			if err != nil {
				w.logger.Debug("a server's name has no address", "name", name, "error", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, a := range addresses {
				hosts[a.Unmap()] = true
			}
		})
	}
	group.Wait()
	return hosts
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *watch) anyNew(strangers []bootproto.Reply) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(strangers, func(r bootproto.Reply) bool { return w.rogues.known[r.From.Addr()] == nil })
}

// judge enters what answered, and gives the alarm for what is new. whole says that every
// network was asked: then who did not answer was not there.
func (w *watch) judge(now time.Time, strangers []bootproto.Reply, whole bool) {
	w.mu.Lock()
	found, gone := w.rogues.enter(now, strangers, whole)
	w.mu.Unlock()
	for _, r := range found {
		w.logger.Warn("a stranger answers slaves: it is no server of this cluster, and a node that boots from it runs whatever it is given",
			"address", r.From.Addr(), "tcp", r.Port, "priority", r.Priority, "erts", r.ERTS)
		w.fleet.Observe(eboot.Event{Kind: eboot.EventRogueFound, Text: r.text() + " answers slaves and is no server of this cluster"})
	}
	for _, address := range gone {
		w.logger.Info("the stranger that answered slaves is gone", "address", address)
	}
}

// tellProblem says once why the networks cannot be asked, and when they can again.
func (w *watch) tellProblem(err error) {
	text := ""
	if err != nil {
		text = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	w.mu.Lock()
	before := w.problem
	w.problem = text
	w.mu.Unlock()
	switch {
	case text == before:
	case text == "":
		w.logger.Info("the networks of slaves can be asked for other boot servers again")
	default:
		w.logger.Warn("the networks of slaves cannot be asked for other boot servers", "error", text)
	}
}

// count is how many rogues answer now.
func (w *watch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rogues.known)
}

// warnings are one for each rogue, or for the first of many.
func (w *watch) warnings() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	warnings := w.rogues.warnings()
	if w.problem != "" {
		warnings = append(warnings, probeProblem+w.problem)
	}
	return warnings
}

// ertsVersions are those that this server has a port for.
func (a *Agent) ertsVersions() []string {
	var versions []string
	for b := range channelBundles(a.view.State()) {
		versions = append(versions, b.ERTS)
	}
	return versions
}

// text describes a rogue.
func (r rogue) text() string {
	erts := ""
	if r.ERTS != "" {
		erts = ", ERTS " + r.ERTS
	}
	return fmt.Sprintf("%s (TCP port %d, priority %d%s)", r.From.Addr(), r.Port, r.Priority, erts)
}
