package agent

import (
	"context"
	"fmt"
	"net/netip"

	"eboot"
	"eboot/fsm"
)

// Boots returns the boots this server remembers.
func (a *Agent) Boots(slave netip.Addr) []eboot.Boot {
	if slave.IsValid() {
		return a.fleet.BootsOf(slave)
	}
	return a.fleet.Boots()
}

// FollowBoots delivers boots as they change.
func (a *Agent) FollowBoots(ctx context.Context) <-chan eboot.Boot { return a.fleet.Follow(ctx) }

// Status says how this server and its Raft group are.
func (a *Agent) Status() eboot.ClusterStatus {
	raft := a.cluster.Status()
	state := a.view.State()
	status := eboot.ClusterStatus{
		Cluster: a.config.Cluster.Name, Server: a.server, Version: a.version, StartedAt: a.startedAt,
		Role: raft.Role, Leader: raft.Leader, Term: raft.Term, LastIndex: raft.LastIndex, AppliedIndex: raft.AppliedIndex,
		CachedIndex: a.cache.WrittenIndex(), Generation: state.Generation(), StateDigest: state.Digest(),
		Servers: members(raft), Warnings: a.warnings(), Readiness: a.Readiness(),
	}
	return status
}

// Healthy returns nil when the parts that everything else waits for still answer, or
// says that they do not before ctx ends: such a server is better dead, since its slaves
// then go to another at once.
func (a *Agent) Healthy(ctx context.Context) error {
	answer := make(chan struct{})
	select {
	case a.pulse <- answer:
	case <-ctx.Done():
		return fmt.Errorf("the replicated state is not followed any more: %w", eboot.ErrUnavailable)
	}
	select {
	case <-answer:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a lock of the store or the fleet is not given back: %w", eboot.ErrUnavailable)
	}
}

// Readiness says whether this server can boot every slave it should.
func (a *Agent) Readiness() eboot.Readiness {
	r, _ := a.readiness(a.view.State())
	return r
}

// readiness also says whether it could if only a leader were missing.
func (a *Agent) readiness(state *fsm.State) (r eboot.Readiness, serving bool) {
	r = eboot.Readiness{Listeners: a.listeners.describe(), Bundles: []eboot.BundleOnDisk{}, Damaged: a.store.Damaged(), Reasons: a.servingProblems(state)}
	serving = len(r.Reasons) == 0
	summary := a.store.Summary()
	r.Storage = &summary
	cause := a.raftFailure()
	if cause == nil && a.config.Clustered() {
		cause = a.cluster.Standing() // no leader for the moment
	}
	if cause != nil {
		r.Reasons = append(r.Reasons, "writes are not possible: "+cause.Error())
	}
	for b := range channelBundles(state) {
		if residence, ok := a.trees.residence(b); ok {
			r.Bundles = append(r.Bundles, bundleOnDisk(b, residence))
		}
	}
	r.Ready = len(r.Reasons) == 0
	return r, serving
}

// servingProblems says why this server cannot boot every slave it should; whether
// anything can be written does not matter here.
func (a *Agent) servingProblems(state *fsm.State) (problems []string) {
	if err := a.boot.silenced(state); err != nil {
		problems = append(problems, err.Error())
	}
	if !a.answering.Load() {
		problems = append(problems, "discovery is not open yet")
	}
	for b := range bootable(state) {
		if err := a.trust.serves(b); err != nil {
			problems = append(problems, err.Error())
		}
	}
	for b := range channelBundles(state) {
		residence, ok := a.trees.residence(b)
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("bundle %s for ERTS %s is not loaded yet", b.Ref(), b.ERTS))
			continue
		case !residence.complete():
			problems = append(problems, fmt.Sprintf("bundle %s for ERTS %s: %s", b.Ref(), b.ERTS, residence.problem))
		}
		if _, ok := a.listeners.port(b.ERTS); !ok {
			problems = append(problems, fmt.Sprintf("no TCP port is open for ERTS %s", b.ERTS))
		}
	}
	return problems
}
