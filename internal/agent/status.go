package agent

import (
	"context"
	"fmt"
	"net/netip"

	"eboot"
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
		Servers: []eboot.Member{}, Readiness: a.Readiness(),
	}
	for _, m := range raft.Servers {
		status.Servers = append(status.Servers, eboot.Member{ID: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.ID == raft.Leader})
	}
	return status
}

// Readiness says whether this server can boot every slave it should.
func (a *Agent) Readiness() eboot.Readiness {
	state := a.view.State()
	r := eboot.Readiness{Listeners: a.listeners.describe(), Bundles: []eboot.BundleOnDisk{}, Damaged: a.store.Damaged()}
	summary := a.store.Summary()
	r.Storage = &summary
	if a.boot.draining.Load() {
		r.Reasons = append(r.Reasons, "the server is stopping")
	}
	if !a.answering.Load() {
		r.Reasons = append(r.Reasons, "discovery is not open yet")
	}
	if cause := a.raftFailure(); cause != nil {
		r.Reasons = append(r.Reasons, "writes are not possible: "+cause.Error())
	}
	for b := range channelBundles(state) {
		residence, ok := a.trees.residence(b)
		switch {
		case !ok:
			r.Reasons = append(r.Reasons, fmt.Sprintf("bundle %s for ERTS %s is not loaded yet", b.Ref(), b.ERTS))
			continue
		case !residence.complete():
			r.Reasons = append(r.Reasons, fmt.Sprintf("bundle %s for ERTS %s: %s", b.Ref(), b.ERTS, residence.problem))
		}
		if _, ok := a.listeners.port(b.ERTS); !ok {
			r.Reasons = append(r.Reasons, fmt.Sprintf("no TCP port is open for ERTS %s", b.ERTS))
		}
		r.Bundles = append(r.Bundles, bundleOnDisk(b, residence))
	}
	r.Ready = len(r.Reasons) == 0
	return r
}
