// The form for a comment on a rated answer.

import { t } from "../i18n.js";
import { h, textButton } from "./dom.js";

/**
 * @param {(comment: string) => Promise<void>} send
 * @returns {HTMLElement}
 */
export function feedbackForm(send) {
  const box = h("textarea", { rows: "2", dir: "auto", "aria-label": t("comment"), placeholder: t("comment"), maxlength: "2000" });
  const form = h("div", { class: "feedback" }, [
    box,
    h("div", { class: "edit-actions" }, [
      textButton(t("close"), () => form.remove()),
      textButton(t("send_comment"), submit, "primary"),
    ]),
  ]);
  async function submit() {
    const comment = box.value.trim();
    if (comment) await send(comment);
    form.replaceChildren(h("p", { role: "status" }, [t("thanks")]));
  }
  return form;
}
