package api

import "eboot"

// route is one thing that can be asked for, and the least role that may.
type route struct {
	pattern string
	role    eboot.Role // "": everybody, without showing anything
	handler handlerFunc
}

// routes is the whole API. A route that is not here does not exist, and none is here
// without a role but those that tell a load balancer whether to send anything.
func (s *Server) routes() []route {
	const (
		anybody   = eboot.Role("")
		viewer    = eboot.RoleViewer
		publisher = eboot.RolePublisher
		operator  = eboot.RoleOperator
		admin     = eboot.RoleAdmin
	)
	return []route{
		{"GET /livez", anybody, s.livez},
		{"GET /readyz", anybody, s.readyz},
		{"GET /metrics", viewer, s.metrics},
		{"GET /v1/whoami", viewer, s.whoami},

		{"GET /v1/cluster", viewer, s.status},
		{"GET /v1/cluster/ready", viewer, s.ready},
		{"GET /v1/cluster/members", viewer, s.members},
		{"POST /v1/cluster/init", admin, s.initCluster},
		{"POST /v1/cluster/transfer", operator, s.transferLeadership},
		{"PUT /v1/cluster/members/{server}/drained", operator, s.drainServer},
		{"DELETE /v1/cluster/members/{server}", admin, s.removeServer},

		{"GET /v1/whitelist", viewer, s.whitelist},
		{"POST /v1/whitelist", operator, s.allow},
		{"POST /v1/whitelist/deny", operator, s.deny},
		{"GET /v1/slaves", viewer, s.slaves},
		{"GET /v1/slaves/{slave}/check", viewer, s.check},
		{"GET /v1/slaves/{slave}/explain", viewer, s.explain},

		{"GET /v1/channels", viewer, s.channels},
		{"GET /v1/channels/{channel}", viewer, s.channel},
		{"PUT /v1/channels/{channel}", operator, s.setChannel},
		{"POST /v1/channels/{channel}/undo", operator, s.undoChannel},
		{"GET /v1/channels/{channel}/rollout", viewer, s.rollout},
		{"POST /v1/channels/{channel}/rollout", operator, s.startRollout},
		{"POST /v1/channels/{channel}/rollout/plan", viewer, s.planRollout},
		{"POST /v1/channels/{channel}/rollout/steer", operator, s.steerRollout},
		{"GET /v1/rollouts", viewer, s.rollouts},

		{"GET /v1/bundles", viewer, s.bundles},
		{"GET /v1/bundles/{bundle}", viewer, s.bundle},
		{"GET /v1/bundles/{bundle}/boot", viewer, s.bootScript},
		{"GET /v1/bundles/{bundle}/diff/{other}", viewer, s.diffBundles},
		{"GET /v1/bundles/{bundle}/manifest", viewer, s.manifest},
		{"PUT /v1/bundles/{bundle}/protected", operator, changeBundle(s.protectBundle)},
		{"POST /v1/bundles/{bundle}/signatures", publisher, changeBundle(s.signBundle)},
		{"DELETE /v1/bundles/{bundle}", operator, s.removeBundle},
		{"POST /v1/bundles/{bundle}/verify", publisher, s.verifyBundle}, // it reads the whole disk

		{"POST /v1/publishes", publisher, s.openPublish},
		{"PUT /v1/publishes/{publish}/blobs", publisher, s.putBlobs},
		{"PUT /v1/publishes/{publish}/manifest", publisher, s.describePublish},
		{"POST /v1/publishes/{publish}/commit", publisher, s.commitPublish}, // with a channel: operator
		{"DELETE /v1/publishes/{publish}", publisher, s.abortPublish},

		{"GET /v1/boots", viewer, s.boots},
		{"GET /v1/boots/follow", viewer, s.followBoots},
		{"GET /v1/events", viewer, s.events},
		{"GET /v1/events/follow", viewer, s.followEvents},

		{"GET /v1/tokens", admin, s.tokens},
		{"POST /v1/tokens", admin, s.createToken},
		{"DELETE /v1/tokens/{token}", admin, s.revokeToken},
		{"GET /v1/snapshot", admin, s.saveSnapshot},
		{"POST /v1/snapshot", admin, s.restoreSnapshot},
	}
}
